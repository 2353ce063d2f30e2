"""Every script in examples/ runs, with few epochs, and leaves what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from pymtg import DataMap

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script in an empty directory; returns what it printed."""

    def run_script(name: str, *words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_own_loop(run):
    assert "15 tasks in 3 groups" in run("own_loop.py", "--epochs", "2")
    data_map = DataMap.load("own_loop.safetensors")
    assert data_map.snapshot_epochs == (2,)
    assert (data_map.count == 2).all()


def test_stg_on_arrays(run):
    printed = run("stg_on_arrays.py", "--epochs", "2", "--groups", "2")
    assert "12 tasks in 2 groups" in printed
    assert "stg_soft" in printed
    assert "(5, 12)" in printed


def test_dmtg_own_branch(run):
    printed = run("dmtg_own_branch.py", "--epochs", "1", "--branches", "2")
    assert "15 tasks in 2 groups" in printed
    assert "(5, 15)" in printed
    assert torch.load("dmtg.pt")


def test_every_example_is_run_here():
    tests = Path(__file__).read_text()
    assert all(f'run("{script.name}"' in tests for script in EXAMPLES.glob("*.py"))
