"""The GPU's benchmarks run through in tiny sizes on the CPU, and their tables are made from what they write."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import _gpu_tables
import _loss_peers
import _tables
import gpu_loss
import pytest
import suggest_dispatch

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("loss", "tasks", "backends", "linear", "training")
EXTRA = ("registers",)  # without a table


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_and_its_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "RESULTS", tmp_path)
    tables = [build for table, build in _gpu_tables.TABLES.items() if table.split("-")[1] == name]
    assert tables
    assert all(build() == _tables.MISSING for build in tables)
    module = importlib.import_module(f"gpu_{name}")
    assert module.main(["--dry-run", "--out", str(tmp_path)]) == 0
    path = tmp_path / f"gpu_{name}.json"
    document = json.loads(path.read_text())
    assert document["device"]["dry_run"]
    assert document["points"]
    for build in tables:
        lines = build().splitlines()
        width = lines[0].count("|")
        assert width > 2
        assert sum(line.count("|") == width for line in lines) >= 3
        assert "dry run" in lines[-1]


@pytest.mark.parametrize("name", EXTRA)
def test_dry_run(name: str, tmp_path: Path) -> None:
    assert importlib.import_module(f"gpu_{name}").main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / f"gpu_{name}.json").read_text())["points"]


def test_warming_up_writes_nothing(tmp_path: Path) -> None:
    for name in NAMES + EXTRA:
        module = importlib.import_module(f"gpu_{name}")
        assert module.main(["--dry-run", "--warm", "0/2", "--out", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_fails_is_noted_and_the_rest_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loss_peers.Vectorised, "flattened", lambda *_: 1 / 0)
    monkeypatch.setattr(
        _loss_peers.Vectorised, "padded", lambda self, logits, targets: 2 * self.segmented(logits, targets)
    )
    assert gpu_loss.main(["--dry-run", "--out", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "gpu_loss.json").read_text())
    assert [point["shape"] for point in document["points"]] == list(gpu_loss.shapes(True))
    seconds = document["points"][1]["seconds"]
    assert "eager transposed" in seconds
    assert "eager flattened" not in seconds
    assert document["failed"]["large: 4 x 3, eager flattened"].startswith("ZeroDivisionError")
    assert document["failed"]["ragged, eager padded"].startswith("AssertionError")


def test_suggested_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"rows": 8, "tasks": 4, "classes": 2, "dtype": "torch.float32"}
    points = [
        {**shape, "seconds": {"triton": 1.0, "cuda": 1.2, "reference": 9.0}, "fastest": "triton"},
        {**shape, "seconds": {"triton": 3.0, "cuda": 1.0}, "fastest": "cuda"},
    ]
    assert suggest_dispatch.main([str(tmp_path)]) == 1
    (tmp_path / "gpu_backends.json").write_text(json.dumps({"points": points}))
    assert suggest_dispatch.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "PREFERENCE[\"cuda\"] = ('cuda', 'triton', 'reference')" in lines[-1]
    assert "triton is 1.20 times as fast as cuda" in lines[-2]


def test_the_script_runs_what_there_is() -> None:
    """Every benchmark is in the script, with a limit; shell scripts are without mistakes; limits sum up to 9 min."""
    for script in (ROOT / "benchmarks").glob("*_gpu.sh"):
        assert os.access(script, os.X_OK)
        subprocess.run(["sh", "-n", str(script)], check=True)
    text = (ROOT / "benchmarks" / "run_gpu.sh").read_text()
    for name in NAMES + EXTRA:
        assert re.search(rf"^measure \d+ {name}$", text, re.MULTILINE), name
    limits = [int(n) for n in re.findall(r"\b(?:measure|limited) (\d+) ", text)]
    assert len(limits) == len(NAMES + EXTRA) + 4
    assert sum(limits) < 540


def test_no_dry_figures_are_committed() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("gpu_*.json"):
        assert not json.loads(path.read_text())["device"]["dry_run"], path
