"""Runs of the command line, in this process and in one of their own, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
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
