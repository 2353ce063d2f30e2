"""Runs in processes of their own that are killed, or whose disk is full, end as if nothing had been."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
import warnings
from collections import Counter

import pytest
import torch
from _resume_run import TRAINERS, assert_same, make, train, train_on_a_full_disk
from _resumed import fit, lines_of


@pytest.fixture(scope="module")
def processes():
    """A server that has imported all that is needed and starts processes at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pymtg.trainers", "pymtg.groups", "sklearn.metrics", "torch._dynamo"])
    return context


def finish(processes, target, *arguments):
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def read(path):
    tensors, told = torch.load(path, weights_only=True)
    return tensors, json.loads(told)


def kill_and_go_on(processes, method, seed, kills, folder):
    """Kill a run again and again, a little later every time; return in which stages that was."""
    rng = random.Random(seed)
    total = 28  # epochs of all stages, for both methods
    killed = Counter()
    for k in range(kills):
        process = processes.Process(target=train, args=(method, seed, folder, folder / "out"))
        process.start()
        until = rng.uniform(k, k + 1) / kills * (total - 4)
        deadline = time.monotonic() + 60
        while len(lines_of(folder / "log.jsonl")) < until and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join(60)
        assert process.exitcode == -9, "it was to be killed and ended before"
        done = [json.loads(line) for line in lines_of(folder / "log.jsonl") if line.endswith(b"}")]
        last = done[-1] if done else {"stage": "none", "epoch": 0, "epochs": 0}
        killed["after " * (last["epoch"] == last["epochs"]) + last["stage"]] += 1
    finish(processes, train, method, seed, folder, folder / "out")
    return killed


def check_kills(processes, method, seed, kills, tmp_path):
    finish(processes, train, method, seed, None, tmp_path / "whole")
    killed = kill_and_go_on(processes, method, seed, kills, tmp_path)
    print(f"{method}: {killed.total()} kills: {dict(killed)}")
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))
    log = [json.loads(line) for line in lines_of(tmp_path / "log.jsonl")]
    stages = {"stg": ["joint"] * 12 + ["group 0"] * 8 + ["group 1"] * 8}
    stages["together"] = ["joint"] * 12 + ["group 0", "group 1"] * 8
    stages["dmtg"] = ["warm start"] * 6 + ["dmtg"] * 16 + ["fine-tuning"] * 6
    assert [line["stage"] for line in log] == stages[method]
    assert not [name for name in os.listdir(tmp_path / "kept") if name.startswith(".")]
    return killed


@pytest.mark.parametrize("method", TRAINERS)
def test_a_run_that_is_killed_ends_the_same(method, processes, seed, tmp_path):
    assert check_kills(processes, method, seed, 4, tmp_path).total() == 4


@pytest.mark.slow
@pytest.mark.skipif("PYMTG_TEST_LONG" not in os.environ, reason="takes minutes: set PYMTG_TEST_LONG, or make test-long")
@pytest.mark.parametrize("method", [*TRAINERS, "together"])
def test_a_run_that_is_killed_many_times_ends_the_same(method, processes, seed, tmp_path):
    killed = check_kills(processes, method, seed, 30, tmp_path)
    stages = {
        "stg": {"joint", "group 0", "group 1"},
        "together": {"joint", "group 1"},  # whose line follows that of group 0 at once
        "dmtg": {"warm start", "dmtg", "fine-tuning"},
    }[method]
    assert stages <= {name.removeprefix("after ") for name in killed}


def test_a_full_disk_is_an_error_and_the_last_good_checkpoint_is_whole(processes, seed, tmp_path):
    for method, trainer in TRAINERS.items():
        folder = tmp_path / method
        process = processes.Process(
            target=train_on_a_full_disk, args=(method, seed, folder, tmp_path / f"{method}.txt")
        )
        process.start()
        process.join(60)
        assert process.exitcode == 0
        message = (tmp_path / f"{method}.txt").read_text(encoding="utf-8")
        assert message.startswith("OSError the checkpoint could not be written to ")
        assert "File too large" in message
        assert message.endswith("those before it are whole")
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
        data = (make(seed), make(seed + 1))
        whole = fit(trainer(seed), data, resume=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(fit(trainer(seed, checkpoint_dir=folder), data), whole)
