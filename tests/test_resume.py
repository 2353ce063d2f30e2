"""Runs that are stopped and gone on with end as if nothing had been; what is logged of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from _resume_run import Bomb, Countdown, Noisy, adagrad, assert_same, dmtg, learned, make, milestones, stg
from _resumed import OFTEN, fit, lines_of, stopped

from pymtg.trainers._keeper import FileKeeper
from pymtg.trainers._stopping import StopRequest, on_signals


def stop_and_go_on(build, data, directory, stops, rng):
    """Let a run end by an exception in some random batches, one after the other; return what it comes to learn."""
    for _ in range(stops):
        with pytest.raises(Bomb):
            fit(build(Countdown(rng.randint(2, 18)), checkpoint_dir=directory), data)
    return fit(build(checkpoint_dir=directory), data)


SORTS = {
    "stg": (stg, {}),
    "stg joint start": (stg, {"init": "joint", "num_groups": "auto"}),
    "stg optimizer, scheduler": (stg, {"optimizer": adagrad, "scheduler": milestones}),
    "stg bfloat16, snapshots in a Gram matrix": (stg, {"amp": True, "snapshots": "gram"}),
    "stg snapshots on disk": (stg, {"snapshots": "disk", "init": "joint"}),
    "dmtg": (dmtg, {}),
    "dmtg per sample": (dmtg, {"sampling": "per_sample", "scheduler": milestones, "freeze_trunk": True}),
    "dmtg fixed": (dmtg, {"assignment": "random", "keep_best": False}),
}


@pytest.mark.parametrize("sort", SORTS)
def test_a_run_that_is_stopped_at_random_batches_ends_the_same(sort, seed, tmp_path):
    trainer, options = SORTS[sort]
    data = (make(seed), make(seed + 1))
    whole = fit(trainer(seed, **options), data, resume=False)

    def build(*countdown, **more):
        return trainer(seed, *countdown, **OFTEN, **options, **more)

    found = stop_and_go_on(build, data, tmp_path / "new" / "kept", 4, random.Random(seed))
    assert_same(found, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentations_go_on_where_they_were(workers, seed, tmp_path):
    data = (Noisy(make(seed, 60)), make(seed + 1))
    options = {"epochs": 2, "specialised_epochs": 1, "num_workers": workers}
    whole = fit(stg(seed, **options), data, resume=False)
    stops = 3 if workers == 0 else 2

    def build(*countdown, **more):
        return stg(seed, *countdown, **OFTEN, **options, **more)

    rng = random.Random(seed)
    for _ in range(stops):
        with pytest.raises(Bomb):
            fit(build(Countdown(rng.randint(2, 4)), checkpoint_dir=tmp_path), data)
    assert_same(fit(build(checkpoint_dir=tmp_path), data), whole)


def test_branches_that_were_dropped_stay_dropped(tmp_path):
    options = {"balance_weight": 0, "warm_epochs": 0, "finetune_epochs": 0, "checkpoint_every": 1}
    for seed in range(20):  # until branches are dropped while there are epochs to come
        data = (make(seed), make(seed + 1))
        whole = dmtg(seed, **options).fit(*data)
        if whole.result_.dropped:
            break
    first = min(whole.result_.dropped.values())
    for last in {first, 5}:

        def stop(stage, record, last=last):
            if record.epoch == last + 1:  # the checkpoint is of the epoch before
                raise Bomb

        directory = tmp_path / str(last)
        with pytest.raises(Bomb):
            dmtg(seed, checkpoint_dir=directory, on_epoch_end=stop, **options).fit(*data)
        assert_same(fit(dmtg(seed, checkpoint_dir=directory, **options), data), learned(whole))


def test_a_signal_at_the_end_of_a_stage_or_between_two_saves(seed, tmp_path, monkeypatch):
    data = (make(seed), make(seed + 1))
    whole = fit(stg(seed), data, resume=False)
    lazy = {"checkpoint_dir": tmp_path, "checkpoint_every": "1h"}
    for method, own in (("stage_done", FileKeeper.stage_done), ("computed", FileKeeper.computed)):

        def then_stop(self, *arguments, own=own):
            found = own(self, *arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            return found

        monkeypatch.setattr(FileKeeper, method, then_stop)
        with on_signals(), pytest.raises(StopRequest) as stop:
            fit(stg(seed, **lazy), data)
        assert (stop.value.number, stop.value.saved) == (signal.SIGTERM, str(tmp_path))
        monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["stage-000.safetensors", "stage-001.safetensors"]
    assert_same(fit(stg(seed, **lazy), data), whole)


def test_without_a_directory_a_signal_ends_a_run_between_two_batches(seed):
    calls = []

    def stop(stage, record):
        os.kill(os.getpid(), signal.SIGINT)
        calls.append(stage)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with on_signals(), pytest.raises(StopRequest) as stopped:
            fit(dmtg(seed, on_epoch_end=stop), (make(seed), make(seed + 1)), resume=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (calls, stopped.value.saved) == (["warm start"], None)


def test_a_signal_whose_exception_somebody_swallows_is_not_lost(seed, tmp_path):
    class Careless(torch.optim.SGD):  # as an import may be that passes over whatever goes wrong
        def __init__(self, params):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(params, lr=0.1)

    with on_signals(), pytest.raises(StopRequest) as stopped:
        fit(stg(seed, optimizer=Careless, checkpoint_dir=tmp_path), (make(seed), make(seed + 1)), resume=False)
    assert (stopped.value.number, stopped.value.saved) == (signal.SIGTERM, str(tmp_path))


def test_the_callers_random_states_are_left_alone(seed, tmp_path):
    data = stopped(tmp_path, seed, **OFTEN)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    fit(stg(seed, checkpoint_dir=tmp_path), data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_log_has_an_object_an_epoch(seed, tmp_path):
    trainer = dmtg(seed, log=tmp_path / "logs" / "log.jsonl")
    trainer.fit(make(seed), make(seed + 1))
    lines = [json.loads(line) for line in lines_of(tmp_path / "logs" / "log.jsonl")]
    assert [(line["stage"], line["epoch"], line["epochs"]) for line in lines] == [
        (stage, epoch, count)
        for stage, count in (("warm start", 2), ("dmtg", 6), ("fine-tuning", 2))
        for epoch in range(1, count + 1)
    ]
    records = [record for stage in trainer.result_.stages for record in stage.history]
    for line, record in zip(lines, records, strict=True):
        assert (line["loss"], line["val_score"]) == (record.loss, record.val_score)
        assert line["seconds"] == pytest.approx(record.seconds, abs=1e-6)
    grouped = [line for line in lines if line["stage"] == "dmtg"]
    assert [line["entropy"] for line in grouped] == list(trainer.result_.entropies[1:])
    assert [line["temperature"] for line in grouped] == list(trainer.result_.temperatures[1:])
    assert [line["moved"] for line in grouped] == list(trainer.result_.moved[1:])
    assert lines[0]["left"] == pytest.approx(9 * records[0].seconds, abs=2e-3)
    assert lines[-1]["left"] == 0
    assert lines[0]["time"] < lines[-1]["time"]


def test_a_log_goes_on_where_the_run_does_and_is_new_where_it_begins(seed, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("another run's\n")
    data = stopped(tmp_path / "kept", seed, log=log, checkpoint_every=2, batches=10 * 3 + 5)
    first = lines_of(log)
    assert len(first) == 3  # the checkpoint knows two
    with log.open("a") as file:
        file.write('{"stage": "joi')  # as a killed process leaves it
    fit(stg(seed, checkpoint_dir=tmp_path / "kept", log=log), data)
    lines = lines_of(log)
    assert lines[:2] == first[:2]
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 3]
