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


@pytest.mark.filterwarnings("ignore:The .* does not have many workers", "ignore:`isinstance.treespec, LeafSpec.` is")
def test_lightning_module(run):
    pytest.importorskip("lightning")
    assert "15 tasks in 3 groups" in run("lightning_module.py", "--epochs", "5")
    data_map = DataMap.load("lightning.safetensors")
    assert data_map.snapshot_epochs == (5,)
    assert (data_map.count == 5).all()


def test_every_example_is_run():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_example*.py"))
    assert all(f'"{script.name}"' in tests for script in EXAMPLES.rglob("*.py"))
