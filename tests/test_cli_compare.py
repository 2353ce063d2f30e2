"""The command line: pymtg compare, and monitors and threads there and in the other commands."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from _cli_runs import FIGURES, metrics_of, run, tiny_run

from pymtg.cli import main


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("mulan"))


def compared(directory):
    """What the methods scored, without what they took."""
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return {
        view: {name: method["metrics"] for name, method in content["methods"].items()}
        for view, content in comparison["views"].items()
    }


@pytest.fixture(scope="module")
def few(tiny):
    """Words of a comparison that takes no time."""
    return ["compare", *tiny[1:], "--seeds", "2", "--views", "fixed", "--methods", "stg_soft,mtl"]


@pytest.fixture(scope="module")
def plain_comparison(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    run(*few, "--out", out)
    assert set(os.listdir(out)) == {"comparison.json", "comparison.md"}
    return compared(out)


def test_compare_runs_every_method_in_every_view(few, tmp_path, capsys):
    words = [word for word in few if word != "--quiet"]
    run(*words, "--methods", "all", "--views", "all", "--max-epochs", "3", "--out", tmp_path)
    found = compared(tmp_path)
    assert set(found) == {"fixed", "best", "equal"}
    methods = {"stg_soft", "stg_hard", "stg_joint", "dmtg", "dmtg_warm", "mtl", "ensemble", "random_groups", "stl"}
    for view in found.values():
        assert set(view) == methods
        for metrics in view.values():
            assert set(metrics) == FIGURES
            assert all(len(summary["values"]) == 2 and summary["stderr"] is not None for summary in metrics.values())
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in (*methods, "±", "2 seed(s)", "within 3", str(tmp_path / "comparison.md")):
        assert part in printed.out
    settings = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["settings"]
    assert settings["max_epochs"] == 3
    assert settings["hidden"] == [8]


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "3"],
        ["--groups", "2"],
        ["--seeds", "1"],
        ["--methods", "mtl"],
        ["--views", "best", "--max-epochs", "3"],
        ["--mode", "kmeans"],
        ["--fuzzifier", "3"],
        ["--snapshot-epochs", "1"],
        ["--lr", "0.01"],
        ["--batch-size", "16"],
        ["--hidden", "4"],
        ["--test-size", "0.5"],
        ["--val-size", "0.2"],
        ["--amp", "bfloat16"],
    ],
    ids=" ".join,
)
def test_every_option_of_compare_changes_the_scores(few, plain_comparison, tmp_path, words):
    run(*few, "--out", tmp_path, *words)
    assert compared(tmp_path) != plain_comparison


@pytest.mark.parametrize(
    "words",
    [
        ["--sampling", "softmax"],
        ["--temperature", "0.3"],
        ["--temperature", "2.5:0.1", "--schedule", "linear"],
        ["--assignment-lr", "0.3"],
    ],
    ids=" ".join,
)
def test_options_of_dmtg_reach_a_comparison(few, tmp_path, words):
    dmtg = [*few, "--methods", "dmtg,dmtg_random", "--seeds", "1", "--groups", "2", "--out", tmp_path]
    run(*dmtg)
    plain = compared(tmp_path)["fixed"]
    run(*dmtg, *words, "--assignment-warmup", "0.25")
    settings = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["settings"]
    assert settings["dmtg_options"]["assignment_warmup"] == "0.25"
    found = compared(tmp_path)["fixed"]
    assert found["dmtg"] != plain["dmtg"]
    assert found["dmtg_random"] == plain["dmtg_random"]  # nothing is drawn


def test_compare_repeats_itself_on_a_device_and_leads_with_the_metric(few, plain_comparison, tmp_path, capsys):
    run(*few, "--out", tmp_path, "--device", "cpu", "--metric", "roc_auc")
    assert compared(tmp_path) == plain_comparison
    head = next(line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("| method"))
    assert head.split("|")[2].strip() == "roc auc"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [200, 80, 40])
def test_no_number_breaks_however_narrow_the_terminal(monkeypatch, capsys, width):
    from rich.console import Console
    from rich.text import Text

    from pymtg._cli import tables

    monkeypatch.setattr(tables, "console", lambda: Console(width=width))
    columns = {f"figure {c}": [Text(f"{c}.1234 ± 0.{r}234") for r in range(3)] for c in range(9)}
    tables.print_columns("many figures", ["stg_soft", "random_groups", "mtl"], columns)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    for row, name in enumerate(["stg_soft", "random_groups", "mtl"]):
        cells = " ".join(line.removeprefix(f" {name}") for line in lines if line.startswith(f" {name}"))
        assert re.findall(r"\S+ ± \S+", cells) == [f"{c}.1234 ± 0.{row}234" for c in range(9)]


def test_a_monitor_from_a_file_and_in_a_comparison(tiny, few, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('monitor = "roc_auc"\nval-size = 0.2\n')
    run(*tiny, "--config", file, "--epochs", "1", "--out", tmp_path / "stg")
    assert metrics_of(tmp_path / "stg")["settings"]["monitor"] == "roc_auc"
    run(*tiny, "--config", file, "--monitor", "auto", "--val-size", "0", "--epochs", "1", "--out", tmp_path / "stg")
    assert metrics_of(tmp_path / "stg")["settings"]["monitor"] is None
    found = {}
    for monitor in ("auto", "loss"):
        words = ["--seeds", "1", "--methods", "mtl", "--views", "best", "--max-epochs", "6", "--lr", "0.3"]
        run(*few, *words, "--monitor", monitor, "--out", tmp_path / monitor)
        found[monitor] = json.loads((tmp_path / monitor / "comparison.json").read_text(encoding="utf-8"))
    assert [one["settings"]["monitor"] for one in found.values()] == ["balanced_accuracy", "loss"]
    assert found["loss"]["views"]["best"]["title"] == "best validation epoch within 6, by loss"
    assert found["loss"]["views"]["best"]["methods"] != found["auto"]["views"]["best"]["methods"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--monitor", "luck", "--val-size", "0.2"], "--monitor must be one of auto, accuracy, .*, loss; got 'luck'"),
        (["--monitor", "r2", "--val-size", "0.2"], "--monitor must suit the tasks, .* classification; got 'r2'"),
        (["--monitor", "f1"], "--monitor needs a validation set: give its share of the rows with --val-size"),
    ],
)
def test_monitors_that_choose_nothing(tiny, few, tmp_path, capsys, words, message):
    for command in ("stg", "dmtg"):
        assert main([command, *tiny[1:9], "--out", str(tmp_path / "o"), *words]) == 2
        assert re.fullmatch(f"pymtg {command}: {message}\n", capsys.readouterr().err)
    assert main([*few, "--out", str(tmp_path / "o"), "--views", "best", *words[:2]]) == (0 if words[1] == "f1" else 2)
    assert main([*few, "--out", str(tmp_path / "o"), "--monitor", "f1"]) == 2
    assert "--monitor needs the view 'best'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tiny", "few"])
def test_threads_are_taken_and_given_back(command, tmp_path, monkeypatch, request):
    taken, before = [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    run(*request.getfixturevalue(command), "--out", tmp_path, "--threads", "3")
    assert taken[:2] == [3, before]
    assert taken == [3, before] * (len(taken) // 2)  # once more where the test set is scored
