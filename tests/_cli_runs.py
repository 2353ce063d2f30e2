"""Runs of the command line, in this process and in one of their own, and what they leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import write_tiny

from pymtg.cli import main

FIGURES = {"accuracy", "balanced_accuracy", "f1", "roc_auc", "average_precision"}
FIRST_FILES = {"metrics.json", "groups.json", "model.safetensors", "data_map.safetensors"}
FILES = FIRST_FILES | {"data_map.png", "memberships.png", "report.html"}
STG = ["stg", "--data", "digits", "--epochs", "1", "--hidden", "8", "--quiet"]


def python_m(*words, **options):
    # torch 2.6 leaves a temporary directory of its own to the interpreter's end
    theirs = ["-W", "ignore:Implicitly cleaning up:ResourceWarning"] if torch.__version__.startswith("2.6.") else []
    strict = ["-W", "error", *theirs]
    command = [sys.executable, *strict, "-m", "pymtg", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def run(*words):
    assert main(list(map(str, words))) == 0


def metrics_of(directory):
    return json.loads((Path(directory) / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def tiny_run(directory):
    """Words of a run that takes no time: a Mulan set of 6 tasks, whose names look like HTML."""
    return [
        "stg",
        "--data",
        write_tiny(directory),
        "--epochs",
        "2",
        "--hidden",
        "8",
        "--batch-size",
        "32",
        "--fuzzifier",
        "1.5",
        "--quiet",
    ]


def learned(directory):
    """What a run learned, without what it took or was asked."""
    metrics = metrics_of(directory)
    return metrics["scores"], [(stage.get("loss"), stage["parameters"]) for stage in metrics["stages"]]


def three_blocks(path):
    points = np.repeat(np.eye(3), 3, axis=0) + np.random.default_rng(0).normal(scale=0.05, size=(9, 3))
    np.save(path, points @ points.T)
    return path


def assert_one_line(words, named, directory, capsys, begin="pymtg"):
    """A mistake: one line on stderr that begins so and names what is wrong, exit code 2, nothing new but `out`."""
    before = set(os.listdir(directory))
    assert main([word.format(tmp=directory) for word in words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith(begin)
    assert re.search(named, printed.err), printed.err
    assert set(os.listdir(directory)) <= before | {"out"}


def assert_ctrl_c_ends_it(words, out):
    """Ctrl-C while a command trains: code 130 and one line, with what was saved if training had begun."""

    def listen() -> None:  # what runs the tests in the background ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "pymtg", *words, "--epochs", "100000", "--out", out]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=listen, **pipes) as process:
        try:
            while not out.exists():  # made right before training starts
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    # Interrupted inside an exec() of text (an import that defines dataclasses), "python -m" ends itself by the signal,
    # whatever code it is given; a shell shows both as 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert output == ""
    saved = r"(; saved in \S+checkpoints: .* --resume .*)?"
    assert re.fullmatch(rf"pymtg {words[0]}: interrupted{saved}\n", errors), errors
    assert set(os.listdir(out)) <= {"checkpoints"}
