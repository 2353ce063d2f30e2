"""The GPU's benchmarks run through in tiny sizes on the CPU, and their tables are made from what they write."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import _gpu_tables
import _tables
import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("loss", "tasks", "backends", "linear", "training")


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


def test_the_script_runs_what_there_is() -> None:
    """Every benchmark is in the script, with a limit; it is a shell script without mistakes; limits sum up to 9 min."""
    script = ROOT / "benchmarks" / "run_gpu.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)
    text = script.read_text()
    for name in NAMES:
        assert re.search(rf"^measure \d+ {name}$", text, re.MULTILINE), name
    limits = [int(n) for n in re.findall(r"^ *(?:measure|limited) (\d+) ", text, re.MULTILINE)]
    assert sum(limits) < 540


def test_no_dry_figures_are_committed() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("gpu_*.json"):
        assert not json.loads(path.read_text())["device"]["dry_run"], path
