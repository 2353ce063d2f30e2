"""What importing pymtg brings along: nothing that only an extra installs, and torch only when it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The packages of the extras by the names they are imported under.
OPTIONAL = {
    *("typer", "rich", "matplotlib", "jinja2", "arff", "PIL", "pandas", "tensorboard", "triton", "torchjd"),
    *("qpsolvers", "quadprog", "lightning", "transformers", "accelerate", "torchmetrics"),
}
NAMES = {"liac-arff": "arff", "pillow": "PIL"}
HEAVY = {"torch", "numpy", "sklearn", "safetensors"}
EVERYTHING = "from pymtg import *; import pymtg.data, pymtg.nets, pymtg.trainers, pymtg.metrics; pymtg.record"


def imported(statements):
    """The top-level modules that a new process has after some statements."""
    show = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    found = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{show}"], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return set(json.loads(found.stdout))


def test_the_list_of_optional_packages_is_that_of_the_extras():
    tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = {"all", "bench", "test", "docs", "lint"}
    words = [word for name, extra in extras.items() if name not in tools for word in extra]
    packages = {word.split(";")[0].split(">")[0].split("=")[0].strip() for word in words} - {"tomli"}
    assert {NAMES.get(package, package) for package in packages} == OPTIONAL


def test_importing_pymtg_imports_next_to_nothing():
    assert imported("import pymtg; pymtg.__all__; dir(pymtg)") & (HEAVY | OPTIONAL) == set()


@pytest.mark.parametrize("statements", ["import pymtg._ops", EVERYTHING], ids=["the loss", "everything"])
def test_no_optional_package_comes_along(statements):
    before = imported("import torch, sklearn.cluster, sklearn.metrics, safetensors.torch")
    found = imported(statements)
    assert "torch" in found
    assert (found - before) & OPTIONAL == set()
