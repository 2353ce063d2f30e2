"""``--resume``, ``--checkpoint-every`` and ``--log``: a signal stops a command, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from _settings import new_seed
from _tiny import write_tiny

from pymtg.cli import main

EPOCHS = {"stg": ["--epochs", "12", "--groups", "2"], "dmtg": ["--epochs", "20", "--warm-epochs", "8"]}
EPOCHS["dmtg"] += ["--finetune-epochs", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("mulan"))


def words(method, data, out, *more):
    sizes = ["--hidden", "8", "--batch-size", "8", "--quiet"]
    return [method, "--data", data, *EPOCHS[method], *sizes, "--out", str(out), *map(str, more)]


def learned(out):
    metrics = json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8"))
    groups = json.loads((Path(out) / "groups.json").read_text(encoding="utf-8"))
    stages = [(s["name"], s.get("loss"), s.get("val_score"), s.get("best_epoch")) for s in metrics["stages"]]
    return metrics["scores"], stages, groups


def lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def signalled(arguments, log, number, epochs):
    """Run a command; send a signal once so many epochs are logged. Return its code, output and errors."""

    def listen() -> None:  # what runs the tests in the background ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "pymtg", *arguments], preexec_fn=listen, **pipes) as process:
        try:
            while lines(log) < epochs and process.poll() is None:
                time.sleep(0.0005)
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output, errors


@contextmanager
def signal_after(epochs, log, number):
    """Send this process a signal once so many epochs are logged, and pymtg listens to it."""

    def watch():
        while lines(log) < epochs or not callable(signal.getsignal(number)):
            time.sleep(0.0005)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        watcher.join(60)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("method", EPOCHS)
def test_a_signal_saves_and_the_same_command_goes_on(method, data, tmp_path, capsys):
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    rng = random.Random(seed)
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    arguments = words(method, data, out, "--log", log, "--resume")
    saved = f"saved in {out / 'checkpoints'}: the same command with --resume goes on from there"
    if method == "stg":
        code, output, errors = signalled(arguments, log, signal.SIGTERM, rng.randrange(1, 24))
        assert (code, output, errors) == (143, "", f"pymtg stg: terminated; {saved}\n")
    else:
        capsys.readouterr()
        with signal_after(rng.randrange(1, 24), log, signal.SIGINT):
            assert main(arguments) == 130
        assert capsys.readouterr() == ("", f"pymtg dmtg: interrupted; {saved}\n")
    assert os.listdir(out) == ["checkpoints"]
    assert main(words(method, data, out)) == 2
    message = capsys.readouterr().err
    assert message.endswith("holds a run that was stopped: go on with --resume, or remove the directory\n")
    assert main([*words(method, data, out, "--resume"), "--lr", "0.5"]) == 2
    assert capsys.readouterr().err.startswith(f"pymtg {method}: --resume must continue the same run; ")
    assert main(arguments) == 0
    assert "checkpoints" not in os.listdir(out)
    assert main(words(method, data, tmp_path / "whole")) == 0
    assert learned(out) == learned(tmp_path / "whole")
    assert lines(log) == 36
    assert capsys.readouterr().err == ""


def test_a_damaged_checkpoint_is_said_in_a_line(data, tmp_path, capsys):
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    arguments = words("stg", data, out, "--log", log, "--checkpoint-every", "1")
    with signal_after(6, log, signal.SIGINT):
        assert main(arguments) == 130
    newest = max((out / "checkpoints").glob("at-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"pymtg: warning: {newest} is ")
    assert printed.err.count("\n") == 1
    assert "; going on from " in printed.err
    assert "checkpoints" not in os.listdir(out)


def test_a_run_that_is_not_stopped_leaves_no_checkpoints(data, tmp_path):
    assert main(words("dmtg", data, tmp_path / "out", "--checkpoint-every", "2", "--resume")) == 0
    assert "checkpoints" not in os.listdir(tmp_path / "out")


def test_a_wrong_interval_is_named_by_its_flag(data, tmp_path, capsys):
    assert main(words("stg", data, tmp_path / "out", "--checkpoint-every", "often")) == 2
    assert capsys.readouterr().err.startswith("pymtg stg: --checkpoint-every must be a number of epochs")
    assert not (tmp_path / "out").exists()
