"""The command line: what pymtg stg writes and prints, and that its options change what is learned."""

from __future__ import annotations

import json
import os
import re
import warnings

import numpy as np
import pytest
import torch
from _cli_runs import FIGURES, FILES, FIRST_FILES, learned, metrics_of, python_m, run, tiny_run
from PIL import Image

from pymtg.cli import main
from pymtg.data import digits as load_digits_as_tasks
from pymtg.metrics import score
from pymtg.nets import load_grouped
from pymtg.report import check_writable
from pymtg.trainers._predict import class_probabilities


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("mulan"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One real run in a process of its own; its output, its directory."""
    out = tmp_path_factory.mktemp("digits") / "new" / "run"
    done = python_m(
        "stg", "--data", "digits", "--groups", 3, "--epochs", 2, "--seed", 0, "--val-size", 0.1, "--out", out
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_stg_writes_its_files_and_nothing_else(digits):
    assert set(os.listdir(digits[1])) == FILES


def test_the_model_is_the_hard_combination_that_was_scored(digits):
    data = load_digits_as_tasks(seed=0, val_size=0.1)
    with torch.no_grad():
        logits = load_grouped(digits[1] / "model.safetensors")(data.test.inputs)
    expected = metrics_of(digits[1])["scores"]["stg_hard"]["mean"]
    found = score(class_probabilities(logits, data.layout), data.test.targets, data.layout).mean
    assert found == pytest.approx(expected, abs=1e-6)


def test_stg_prints_scores_groups_and_the_report(digits):
    done, out = digits
    assert done.stderr == ""
    for part in ("stg_soft", "stg_hard", "mtl", "balanced accuracy", "group", "is-0", str(out / "report.html")):
        assert part in done.stdout


def test_metrics_follow_the_schema(digits):
    metrics = metrics_of(digits[1])
    assert set(metrics["scores"]) == {"stg_soft", "stg_hard", "mtl"}
    for scores in metrics["scores"].values():
        assert set(scores["mean"]) == FIGURES
        assert len(scores["tasks"]) == 15
        assert all(set(figures) == FIGURES for figures in scores["tasks"].values())
        assert all(0 <= value <= 1 for value in scores["mean"].values())
    stages = {stage["name"]: stage for stage in metrics["stages"]}
    assert list(stages) == ["joint", "grouping", "group 0", "group 1", "group 2"]
    assert all(stage["seconds"] > 0 for stage in stages.values())
    assert stages["joint"]["parameters"] == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 15 + 15
    assert len(stages["group 2"]["loss"]) == len(stages["group 2"]["val_score"]) == 2
    assert metrics["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
    assert metrics["parameters"] == {"stg": 3 * stages["joint"]["parameters"], "mtl": stages["joint"]["parameters"]}
    assert metrics["seed"] == 0
    assert set(metrics["versions"]) == {"python", "pymtg", "torch", "numpy", "scikit-learn"}
    assert metrics["settings"]["snapshot_epochs"] == [1, 2]


def test_groups_follow_the_schema(digits):
    groups = json.loads((digits[1] / "groups.json").read_text(encoding="utf-8"))
    assert len(groups["tasks"]) == 15
    for task in groups["tasks"].values():
        assert len(task["memberships"]) == 3
        assert sum(task["memberships"]) == pytest.approx(1)
        assert task["label"] == int(np.argmax(task["memberships"]))
    assert groups["quality"]


@pytest.mark.parametrize("name", ["data_map.png", "memberships.png"])
def test_pictures_are_valid_and_of_a_sane_size(digits, name):
    with Image.open(digits[1] / name) as image:
        image.verify()
        assert image.format == "PNG"
        assert 400 <= image.size[0] <= 2000
        assert 300 <= image.size[1] <= 2000


def test_report_stands_alone(digits):
    text = (digits[1] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    references = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert references
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in references)
    for part in ("pymtg stg --data digits --groups 3", "is-7", "has-loop", "Learning curves"):
        assert part in text


def test_a_second_run_replaces_the_files_and_repeats_the_figures(tiny, plain, tmp_path):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    run(*tiny, "--out", tmp_path)
    assert learned(tmp_path) == plain
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert set(os.listdir(tmp_path)) == FILES | {"mine.txt"}


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    run(*tiny, "--out", out)
    return learned(out)


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "3"],
        ["--seed", "1"],
        ["--groups", "2"],
        ["--init", "joint"],
        ["--mode", "kmeans"],
        ["--mode", "fuzzy-cmeans"],
        ["--fuzzifier", "3"],
        ["--lr", "0.01"],
        ["--batch-size", "16"],
        ["--hidden", "8,8"],
        ["--snapshot-epochs", "1"],
        ["--specialised-epochs", "3"],
        ["--test-size", "0.5"],
        ["--val-size", "0.25"],
        ["--amp", "bfloat16"],
    ],
    ids=" ".join,
)
def test_every_option_changes_what_is_learned(tiny, plain, tmp_path, monkeypatch, words):
    monkeypatch.setattr("pymtg.report.figures.png", lambda *_: b"")  # drawing takes longest, and is tried elsewhere
    monkeypatch.setattr("pymtg.report.html.png", lambda *_: b"")
    run(*tiny, "--out", tmp_path, *words)
    assert learned(tmp_path) != plain


def test_the_groups_networks_together_or_one_by_one(tiny, tmp_path):
    found = {}
    for form in ("auto", "one-by-one"):
        run(*tiny, "--out", tmp_path / form, "--specialise", form, "--device", "cpu")
        found[form] = metrics_of(tmp_path / form)
    assert [metrics["settings"]["specialise"] for metrics in found.values()] == ["together", "one-by-one"]
    losses = [[stage.get("loss", []) for stage in metrics["stages"]] for metrics in found.values()]
    np.testing.assert_allclose(*(np.concatenate(each) for each in losses), rtol=1e-4)


def test_keep_best_keeps_the_best_epoch(tiny, tmp_path):
    run(*tiny, "--out", tmp_path, "--epochs", "4", "--lr", "0.3", "--val-size", "0.2", "--keep-best")
    stages = [stage for stage in metrics_of(tmp_path)["stages"] if stage["name"] != "grouping"]
    assert [stage["best_epoch"] for stage in stages] == [1 + int(np.argmax(stage["val_score"])) for stage in stages]


def test_warnings_of_ours_are_lines_and_those_of_others_as_they_are(tiny, tmp_path, capsys, monkeypatch):
    def odd(*arguments):
        warnings.warn("odd\nnumbers", UserWarning, stacklevel=1)
        return plain(*arguments)

    plain = check_writable
    monkeypatch.setattr("pymtg.report.check_writable", odd)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("default")
        run(*tiny, "--out", tmp_path, "--val-size", "0.005", "--keep-best")  # one row, and so one class
    line = "pymtg: warning: --keep-best had nothing to go by in a stage: none of its tasks can be scored on val (one "
    assert capsys.readouterr().err == f"{line}class only, say), so it ends with the weights of its last epoch\n"
    assert [str(other.message) for other in others] == ["odd\nnumbers"]


@pytest.mark.parametrize(
    ("words", "name", "sign"),
    [([], "balanced_accuracy", 1), (["--monitor", "loss"], "loss", -1), (["--monitor", "roc_auc"], "roc_auc", 1)],
)
def test_the_monitor_chooses_the_best_epoch_and_is_named(tiny, tmp_path, words, name, sign):
    for command in ("stg", "dmtg"):
        out = tmp_path / command
        asked = [command, *tiny[1:9], "--quiet", "--val-size", "0.2", "--keep-best", "--epochs", "3", "--lr", "0.3"]
        run(*asked, "--out", out, *words)
        metrics = metrics_of(out)
        assert metrics["settings"]["monitor"] == name
        stages = [stage for stage in metrics["stages"] if stage["name"] != "grouping"]
        assert [stage["best_epoch"] for stage in stages] == [1 + int(np.argmax(stage["val_score"])) for stage in stages]
        assert all(sign * score > 0 for stage in stages for score in stage["val_score"])
        assert f"<dt>monitor</dt><dd>{name}</dd>" in (out / "report.html").read_text(encoding="utf-8")


def test_device_is_taken_and_quiet_says_nothing(tiny, tmp_path, capsys):
    run(*tiny, "--out", tmp_path, "--device", "cpu")
    assert metrics_of(tmp_path)["settings"]["device"] == "cpu"
    assert capsys.readouterr() == ("", "")


def test_auto_groups_show_the_curve(tiny, tmp_path):
    run(*tiny, "--out", tmp_path, "--groups", "auto")
    assert "Choice of the number of groups" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert metrics_of(tmp_path)["num_groups"] >= 2


def test_names_that_look_like_html_are_escaped(tiny, tmp_path):
    run(*tiny, "--out", tmp_path)
    assert set(metrics_of(tmp_path)["scores"]["mtl"]["tasks"]) == {f"<y{i}>" for i in range(6)}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;y0&gt;" in text
    assert "<y0>" not in text


def test_cluster_finds_the_groups_of_the_run_in_its_map(digits, tmp_path, capsys):
    run("cluster", digits[1] / "data_map.safetensors", "--groups", "3", "--out", tmp_path / "a" / "g.json")
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "a" / "g.json", digits[1] / "groups.json"))
    labels = [[task["label"] for task in groups["tasks"].values()] for groups in (ours, theirs)]
    assert len(set(zip(*labels, strict=True))) == 3  # the same partition, whatever the numbering
    assert "has-loop" in capsys.readouterr().out


def test_a_picture_that_fails_leaves_the_figures_in_a_directory_of_their_own(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text("old")

    def no_space(*_):
        raise OSError(28, "No space left on device", "data_map.png")

    monkeypatch.setattr("pymtg._cli.stg_record.save_data_map", no_space)
    assert main([*tiny, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "pymtg stg: data_map.png: No space left on device\n"
    assert (tmp_path / "metrics.json").read_text() == "old"
    (left,) = tmp_path.glob("unfinished-*")
    assert set(os.listdir(left)) == FIRST_FILES
