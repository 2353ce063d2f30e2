"""``--targets``: runs and comparisons of regression tasks on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pymtg.cli import main
from pymtg.data import load
from pymtg.metrics import normalized_gain

FAST = ["--epochs", "2", "--hidden", "8", "--batch-size", "32", "--quiet"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a regression set of 4 targets; return what --data takes."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 5))
    targets = inputs @ rng.normal(size=(5, 4)) * [1, 10, 100, 1] + rng.normal(size=(120, 4)) * [0.1, 1, 100, 9]
    head = [f"@attribute {name} numeric" for name in [*(f"f{i}" for i in range(5)), *(f"t{i}" for i in range(4))]]
    rows = [",".join(f"{v:.4f}" for v in row) for row in np.column_stack([inputs, targets])]
    directory = tmp_path_factory.mktemp("regression")
    (directory / "r.arff").write_text("\n".join(["@relation r", *head, "@data", *rows, ""]))
    return f"mulan:{directory / 'r'}"


def test_stg(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stg", "--data", spec, "--targets", "4", "--groups", "2", "--val-size", "0.2", "--keep-best"]
    assert main([*words, *FAST[:-1], "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for scores in metrics["scores"].values():
        assert list(scores["mean"]) == ["r2", "rmse"]
        assert list(scores["tasks"]) == ["t0", "t1", "t2", "t3"]
        assert 0 < scores["mean"]["rmse"] < 2
    gain = normalized_gain(metrics["scores"]["stg_soft"], metrics["scores"]["mtl"])
    assert gain.defined == 4
    page = (tmp_path / "report.html").read_text()
    assert "R²" in page
    assert "The lower an RMSE, the better. It is in units of the target's standard deviation" in page
    data = load(spec, 0, val_size=0.2, targets=4)
    assert metrics["data"]["target_mean"] == list(data.target_mean)
    assert metrics["data"]["target_scale"] == list(data.target_scale)
    # the lowest RMSE is the one in bold
    rmse = {m: scores["mean"]["rmse"] for m, scores in metrics["scores"].items()}
    best, worst = (f"{pick(rmse.values()):.4f}" for pick in (min, max))
    assert re.search(rf'<td class="n best">{best}</td>', page)
    assert best == worst or not re.search(rf'<td class="n best">{worst}</td>', page)
    printed = capsys.readouterr().out
    assert "rmse" in printed
    assert "means over 4 tasks" in printed


def test_compare(spec: str, tmp_path: Path) -> None:
    words = ["compare", "--data", spec, "--targets", "4", "--groups", "2", "--seeds", "2", "--views", "fixed"]
    assert main([*words, *FAST, "--out", str(tmp_path)]) == 0
    assert "| method | r2 | rmse |" in (tmp_path / "comparison.md").read_text()
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["settings"]["monitor"] == "r2"
    assert main([*words, *FAST, "--metric", "rmse", "--methods", "mtl,stl", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert lines[4].startswith("| method | rmse | r2 |")
    means = [float(line.split("|")[2].split()[0]) for line in lines[6:8]]
    starred = [r"\*" in line.split("|")[2] for line in lines[6:8]]
    assert starred == [means[0] <= means[1], means[1] < means[0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "digits", "--targets", "3"], "--targets must be left out for the digits"),
        (["--data", "SPEC", "--targets", "9"], "no feature beside its 9 targets"),
        (["--data", "SPEC"], "the number of target columns"),
    ],
)
def test_mistakes(
    spec: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [spec if word == "SPEC" else word for word in words]
    assert main(["stg", *given, *FAST, "--out", str(tmp_path)]) != 0
    assert message in capsys.readouterr().err


def test_a_metric_of_the_other_kind(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--data", spec, "--targets", "4", "--metric", "f1", *FAST, "--out", str(tmp_path)]
    assert main(words) != 0
    assert "--metric must be one of r2, rmse; got 'f1'" in capsys.readouterr().err
