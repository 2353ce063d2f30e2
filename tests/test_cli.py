"""The command line: what it writes, what it prints, how it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import write_tiny
from PIL import Image

from pymtg import DataMap, TaskLayout
from pymtg._cli.errors import CommandError, in_flags
from pymtg._cli.run_setup import check_place
from pymtg.cli import main
from pymtg.data import digits as load_digits_as_tasks
from pymtg.metrics import score
from pymtg.nets import load_grouped
from pymtg.report import check_writable
from pymtg.trainers._predict import class_probabilities

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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Words of a run that takes no time: a Mulan set of 6 tasks, whose names look like HTML."""
    return [
        "stg",
        "--data",
        write_tiny(tmp_path_factory.mktemp("mulan")),
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One real run in a process of its own; its output, its directory."""
    out = tmp_path_factory.mktemp("digits") / "new" / "run"
    done = python_m(
        "stg", "--data", "digits", "--groups", 3, "--epochs", 2, "--seed", 0, "--val-size", 0.1, "--out", out
    )
    assert done.returncode == 0, done.stderr
    return done, out


# a run ---------------------------------------------------------------------------------------------------------------


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
        run(*tiny, "--out", tmp_path / form, "--specialise", form)
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


# compare -------------------------------------------------------------------------------------------------------------


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


# cluster -------------------------------------------------------------------------------------------------------------


def three_blocks(path):
    points = np.repeat(np.eye(3), 3, axis=0) + np.random.default_rng(0).normal(scale=0.05, size=(9, 3))
    np.save(path, points @ points.T)
    return path


def test_cluster_finds_the_groups_of_the_run_in_its_map(digits, tmp_path, capsys):
    run("cluster", digits[1] / "data_map.safetensors", "--groups", "3", "--out", tmp_path / "a" / "g.json")
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "a" / "g.json", digits[1] / "groups.json"))
    labels = [[task["label"] for task in groups["tasks"].values()] for groups in (ours, theirs)]
    assert len(set(zip(*labels, strict=True))) == 3  # the same partition, whatever the numbering
    assert "has-loop" in capsys.readouterr().out


def test_cluster_of_a_gram_with_names(tmp_path, capsys):
    gram = three_blocks(tmp_path / "g.npy")
    run("cluster", gram, "--groups", "3", "--names", ",".join("abcdefghi"), "--out", tmp_path / "g.json")
    tasks = json.loads((tmp_path / "g.json").read_text())["tasks"]
    assert list(tasks) == list("abcdefghi")
    labels = [task["label"] for task in tasks.values()]
    assert labels[:3] + labels[3:6] + labels[6:] == [x for x in (labels[0], labels[3], labels[6]) for _ in range(3)]
    assert len(set(labels)) == 3
    assert "a (1.00)" in capsys.readouterr().out


def test_cluster_options_do_something(tmp_path, capsys):
    gram = three_blocks(tmp_path / "g.npy")
    (tmp_path / "names.txt").write_text("\n".join("ABCDEFGHI"))
    (tmp_path / "marked.txt").write_text("\r\n".join("ABCDEFGHI"), encoding="utf-8-sig")

    def groups(*words):
        run("cluster", gram, "--out", tmp_path / "g.json", "--quiet", *words)
        return json.loads((tmp_path / "g.json").read_text())["tasks"]

    plain = groups()
    assert capsys.readouterr().out == ""
    assert groups("--groups", "2") != plain
    assert groups("--groups", "auto") == plain
    assert groups("--fuzzifier", "3") != plain
    assert groups("--mode", "kmeans")["task0"]["memberships"].count(0) == 2
    assert list(groups("--names", f"@{tmp_path / 'names.txt'}")) == list("ABCDEFGHI")
    assert list(groups("--names", f"@{tmp_path / 'marked.txt'}")) == list("ABCDEFGHI")


def test_cluster_seed_and_starts_do_something(tmp_path):
    rng = np.random.default_rng(3)
    points = rng.normal(size=(60, 2))
    np.save(tmp_path / "g.npy", points @ points.T)

    def inertia(*words):
        run("cluster", tmp_path / "g.npy", "--groups", "12", "--out", tmp_path / "g.json", "--quiet", *words)
        return json.loads((tmp_path / "g.json").read_text())["quality"]["inertia"]

    by_seed = [inertia("--seed", str(seed), "--n-init", "1") for seed in range(4)]
    assert len(set(by_seed)) > 1
    assert inertia("--n-init", "200") <= min(by_seed)


# env, version, help --------------------------------------------------------------------------------------------------


def test_env_as_text_and_as_json(capsys):
    run("env")
    text = capsys.readouterr().out
    run("env", "--json")
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "machine", "backends"}
    assert "cpp" in found["backends"]["available"]
    assert found["machine"]["instruction_set"] in ("base", "avx2", "avx512")
    assert found["machine"]["devices"][0] == "cpu"
    for part in (found["versions"]["torch"], found["machine"]["instruction_set"], "scikit-learn", "threads"):
        assert part in text


def test_env_checks_the_backends(capsys, monkeypatch):
    from pymtg import _backend
    from pymtg._cli import backend_check

    monkeypatch.setattr(backend_check, "_ROUNDS", 1)
    run("env", "--check", "--json")
    checked = json.loads(capsys.readouterr().out)["check"]
    assert {one["backend"]: one["error"] for one in checked if one["device"] == "cpu"}["cpp"] is None
    assert all(one["seconds"] > 0 for one in checked)

    # One that is off, one that fails: both are shown, and the command says so.
    plain = _backend._BACKENDS["reference"]

    def off(*arguments, **options):
        losses, gradient = plain.cross_entropy(*arguments, **options)
        return losses, gradient * 1.01

    def broken(*arguments, **options):
        raise RuntimeError("no kernel\nfor this device")

    for name, function in (("off", off), ("broken", broken)):
        monkeypatch.setitem(_backend._BACKENDS, name, dataclasses.replace(plain, cross_entropy=function))
    monkeypatch.setattr(_backend, "_AVAILABLE", ("reference", "off", "broken"))
    monkeypatch.setattr(backend_check, "available_backends", lambda: _backend._AVAILABLE)
    assert main(["env", "--check"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["reference"].split()[-1] == "agrees"
    assert "gradient: Tensor-likes are not close" in lines["off"]
    assert "RuntimeError: no kernel for this device" in lines["broken"]


def test_version_and_help(capsys):
    run("--version")
    assert re.fullmatch(r"pymtg \d+\.\d+\S*\n", capsys.readouterr().out)
    run("--help")
    assert {"stg", "dmtg", "compare", "cluster", "env"} <= set(capsys.readouterr().out.split())
    run()
    assert "Usage" in capsys.readouterr().out
    for command in ("stg", "dmtg", "compare", "cluster", "env"):
        run(command, "--help")
        assert "--help" in capsys.readouterr().out


def test_help_does_not_load_what_it_does_not_need():
    code = (
        "import sys; from pymtg.cli import main; main(['stg', '--help'])\n"
        "heavy = {'sklearn', 'matplotlib', 'pandas', 'jinja2', 'scipy', 'pymtg.trainers', 'pymtg._core'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# the process ---------------------------------------------------------------------------------------------------------


def test_a_notebooks_canvas_that_is_not_installed_does_not_matter(tiny, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = python_m(*tiny, "--out", tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(os.listdir(tmp_path)) == FILES


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=["stdin", "stdout", "stderr", "all"])
def test_a_stream_that_is_closed_is_done_without(tiny, tmp_path, closed):
    def close() -> None:
        for number in closed:
            os.close(number)

    done = python_m(*tiny[:-1], "--out", tmp_path, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("report.html" in done.stdout) == (1 not in closed)
    assert set(os.listdir(tmp_path)) == FILES


def test_a_mistake_is_not_told_on_stdout_where_stderr_is_closed():
    done = python_m("cluster", "--frobnicate", preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (2, "")


# errors --------------------------------------------------------------------------------------------------------------


GRAM = ["cluster", "{tmp}/g.npy"]
COMPARE = ["compare", "--data", "digits", "--epochs", "1", "--seeds", "1", "--out", "{tmp}/out"]
TRAIN = [*STG, "--out", "{tmp}/out"]
MISTAKES = {  # what is wrong: the words, and what the line must name
    "no such command": (["train"], "train"),
    "no such option": ([*TRAIN, "--frobnicate"], "--frobnicate"),
    "stray word": ([*TRAIN, "digits"], "digits"),
    "no data": (["stg", "--out", "{tmp}/out"], "--data"),
    "no out": (["stg", "--data", "digits"], "--out"),
    "epochs not a number": ([*TRAIN, "--epochs", "many"], "--epochs.*integer"),
    "no epochs": ([*TRAIN, "--epochs", "0"], "--epochs"),
    "groups not a number": ([*TRAIN, "--groups", "few"], "--groups.*'few'"),
    "groups negative": ([*TRAIN, "--groups", "-1"], "--groups.*'-1'"),
    "more groups than tasks": ([*TRAIN, "--groups", "16"], "--groups.*15.*16"),
    "fuzzifier 1": ([*TRAIN, "--fuzzifier", "1"], "--fuzzifier.*1"),
    "unknown mode": ([*TRAIN, "--mode", "fancy"], "--mode.*'fancy'"),
    "unknown init": ([*TRAIN, "--init", "warm"], "--init.*'warm'"),
    "unknown form": ([*TRAIN, "--specialise", "apart"], "--specialise.*'apart'"),
    "lr 0": ([*TRAIN, "--lr", "0"], "--lr.*0"),
    "hidden": ([*TRAIN, "--hidden", "64,x"], "--hidden.*'64,x'"),
    "snapshot beyond": ([*TRAIN, "--snapshot-epochs", "5"], "--snapshot-epochs.*5"),
    "snapshots": ([*TRAIN, "--snapshot-epochs", "1;2"], "--snapshot-epochs.*'1;2'"),
    "amp": ([*TRAIN, "--amp", "int8"], "--amp.*'int8'"),
    "half on cpu": ([*TRAIN, "--amp", "float16", "--device", "cpu"], "float16.*cpu"),
    "unknown device": ([*TRAIN, "--device", "toaster"], "device.*'toaster'"),
    "absent device": ([*TRAIN, "--device", "cuda:99"], "device.*'cuda:99'"),
    "keep best of nothing": ([*TRAIN, "--keep-best"], "--keep-best"),
    "seed": ([*TRAIN, "--seed", "-1"], "--seed"),
    "test size": ([*TRAIN, "--test-size", "1.5"], "--test-size.*1.5"),
    "val size": ([*TRAIN, "--val-size", "nan"], "--val-size.*nan"),
    "val and test sizes": ([*TRAIN, "--val-size", "0.99"], "--val-size must be less than 1 - test_size .*got 0.99"),
    "unknown data": ([*TRAIN, "--data", "mnist"], "'mnist'"),
    "mulan without files": ([*TRAIN, "--data", "mulan:{tmp}/none"], "none"),
    "mulan with bad files": ([*TRAIN, "--data", "mulan:{tmp}/bad"], "bad"),
    "out is empty": ([*STG, "--out", ""], "stg: --out must name a directory; got ''"),
    "dmtg's out is empty": (["dmtg", *STG[1:], "--out", ""], "dmtg: --out must name a directory; got ''"),
    "compare's out is empty": ([*COMPARE[:-1], ""], "compare: --out must name a directory; got ''"),
    "cluster's out is empty": ([*GRAM, "--out", ""], "cluster: --out must name a file; got ''"),
    "log is empty": ([*TRAIN, "--log", ""], "--log must name a file; got ''"),
    "board is empty": ([*TRAIN, "--tensorboard", ""], "--tensorboard must name a directory; got ''"),
    "profile is empty": ([*TRAIN, "--profile="], "--profile must name a directory; got ''"),
    "out below a file": ([*TRAIN, "--out", "{tmp}/file/x"], "--out.*file"),
    "out is a file": ([*TRAIN, "--out", "{tmp}/file"], "--out.*file"),
    "out in /proc": ([*TRAIN, "--out", "/proc/nowhere"], "--out.*/proc/nowhere"),
    "log is a directory": ([*TRAIN, "--log", "{tmp}"], "--log must be a file .*Is a directory"),
    "log below a file": ([*TRAIN, "--log", "{tmp}/file/log.jsonl"], "--log must be a file .*file: Not a directory"),
    "log in /proc": ([*TRAIN, "--log", "/proc/nowhere/log.jsonl"], "--log must be a file .*/proc/nowhere: No such"),
    "board is a file": ([*TRAIN, "--tensorboard", "{tmp}/file"], "--tensorboard must be a directory .*file: Not a dir"),
    "profile is a file": ([*TRAIN, "--profile", "{tmp}/file"], "--profile must be a directory .*file: Not a directory"),
    "profile below a file": ([*TRAIN, "--profile", "{tmp}/file/p"], "--profile must be .*file: Not a directory"),
    "dmtg's log": (["dmtg", *TRAIN[1:], "--log", "{tmp}"], "--log must be a file .*Is a directory"),
    "map missing": (["cluster", "{tmp}/none.safetensors"], "none.safetensors.*No such file"),
    "map is a directory": (["cluster", "{tmp}"], "directory"),
    "map is no map": (["cluster", "{tmp}/file"], "file"),
    "gram truncated": (["cluster", "{tmp}/cut.npy"], "cut.npy"),
    "gram flat": (["cluster", "{tmp}/flat.npy"], r"flat.npy.*\(3,\)"),
    "gram NaN": (["cluster", "{tmp}/nan.npy"], "(?i)nan|finite"),
    "gram of words": (["cluster", "{tmp}/words.npy"], "words.npy"),
    "gram of objects": (["cluster", "{tmp}/objects.npy"], "objects.npy"),
    "names too few": ([*GRAM, "--names", "a,b"], r"--names.*\(9\).*2"),
    "names empty": ([*GRAM, "--names", "a,b,,d,e,f,g,h,i"], "--names must not hold an empty name; got 'a,b,,d"),
    "names twice": ([*GRAM, "--names", ",".join("aacdefghi")], "'a'"),
    "names missing": ([*GRAM, "--names", "@{tmp}/no.txt"], "no.txt"),
    "names not text": ([*GRAM, "--names", "@{tmp}/binary"], "--names.*UTF-8"),
    "too many groups": (
        [*GRAM, "--groups", "10"],
        r"--groups must be at most the number of tasks \(9\), or .*; got 10$",
    ),
    "an empty map": (["cluster", "{tmp}/empty.safetensors"], "cluster: the data map must hold observations"),
    "cluster mode": ([*GRAM, "--mode", "fancy"], "--mode.*'fancy'"),
    "cluster seed": ([*GRAM, "--seed", "4294967296"], r"cluster: --seed must be in 0\.\.2\*\*32-1; got 4294967296"),
    "cluster out": ([*GRAM, "--out", "{tmp}/file/g.json"], "--out.*file"),
    "cluster out is a directory": ([*GRAM, "--out", "{tmp}"], "--out"),
    "no threads": ([*TRAIN, "--threads", "0"], "--threads"),
    "seeds": ([*COMPARE, "--seeds", "0"], "--seeds"),
    "methods": ([*COMPARE, "--methods", "stl,magic"], "'magic'"),
    "compare temperature": ([*COMPARE, "--temperature", "0"], "--temperature"),
    "compare sampling": ([*COMPARE, "--sampling", "dice"], "--sampling.*'dice'"),
    "views": ([*COMPARE, "--views", "wide"], "'wide'"),
    "metric": ([*COMPARE, "--metric", "luck"], "'luck'"),
    "compare out": ([*COMPARE, "--out", "{tmp}/file"], "--out.*file"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A directory of files that are not what they are taken for."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "file").write_text("not a map")
    (tmp / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp / "flat.npy", np.zeros(3))
    np.save(tmp / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp / "words.npy", np.array([["a", "b"], ["c", "d"]]))
    np.save(tmp / "objects.npy", np.array([[None]]), allow_pickle=True)
    (tmp / "binary").write_bytes(b"\xff\xfe\x00")
    three_blocks(tmp / "g.npy")
    DataMap(4, TaskLayout.binary(["a", "b", "c"])).save(tmp / "empty.safetensors")
    (tmp / "bad.arff").write_text("nonsense")
    (tmp / "bad.xml").write_text("<labels>")
    return tmp


@pytest.mark.parametrize(("words", "named"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_one_line_and_code_2(bad_files, capsys, words, named):
    before = set(os.listdir(bad_files))
    assert main([word.format(tmp=bad_files) for word in words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("pymtg")
    assert re.search(named, printed.err), printed.err
    assert set(os.listdir(bad_files)) <= before | {"out"}


def test_a_directory_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    start = time.perf_counter()
    done = python_m("stg", "--data", "digits", "--epochs", 100_000, "--out", tmp_path / "file" / "out")
    assert time.perf_counter() - start < 60
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mistake_leaves_no_directory_behind(tmp_path):
    assert main([*STG, "--out", str(tmp_path / "out"), "--fuzzifier", "0"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--log", "--tensorboard", "--profile", "--out"])
def test_a_place_of_another_kind_leaves_no_directory_behind(tmp_path, capsys, option):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    names = {"--out": "out", "--log": "logs/log.jsonl", "--tensorboard": "board", "--profile": "profile"}
    names[option] = "directory" if option == "--log" else "file"
    assert main([*STG, *[word for o, name in names.items() for word in (o, str(tmp_path / name))]]) == 2
    assert re.match(f"pymtg stg: {option} must be .* that can be written; ", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]


def test_a_log_in_a_directory_that_one_may_not_look_into_is_named(tmp_path):
    check_writable(tmp_path / "out")
    (tmp_path / "locked").mkdir(mode=0)
    root = os.geteuid() == 0  # whom no mode keeps out
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(CommandError, match=r"^--log must be a file .*; .*locked.*Permission denied"):
            check_place(Path(tempfile.gettempdir()), None, log=tmp_path / "locked" / "log.jsonl")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("blocked", ["typer", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(blocked):
    code = f"import sys; sys.modules[{blocked!r}] = None; from pymtg.cli import main; sys.exit(main(['env']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"pymtg: the command line needs {blocked}: pip install 'pymtg[cli]'\n"


def test_without_matplotlib_stg_says_so_before_it_trains(tmp_path, monkeypatch, capsys):
    from pymtg._cli import errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert main([*STG, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "pymtg stg: this command needs matplotlib: pip install 'pymtg[report]'\n"


def test_ctrl_c_ends_with_130_and_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pymtg",
        "stg",
        "--data",
        "digits",
        "--epochs",
        "100000",
        "--out",
        tmp_path / "out",
    ]

    def listen() -> None:  # what runs the tests in the background ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=listen, **pipes) as process:
        try:
            while not (tmp_path / "out").exists():  # made right before training starts
                assert process.poll() is None
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
    # with what was saved, if training had begun
    assert re.fullmatch(r"pymtg stg: interrupted(; saved in \S+checkpoints: .* --resume .*)?\n", errors), errors
    assert set(os.listdir(tmp_path / "out")) <= {"checkpoints"}


def test_the_installed_command_is_this_one():
    script = Path(sys.executable).with_name("pymtg")
    if not script.exists():
        pytest.skip("pymtg is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("num_groups must be at least 1; got 0", "--groups must be at least 1; got 0"),
        ("test_size must be a share", "--test-size must be a share"),
        ("amp='float16' needs a CUDA device", "--amp='float16' needs a CUDA device"),
        ("test_size=0.9 does not fit 3 rows", "--test-size=0.9 does not fit 3 rows"),
        ("keep_best=True needs a validation set", "--keep-best needs a validation set"),
        ("epochs's last must be", "--epochs's last must be"),
        ("groups 'few' must be", "--groups 'few' must be"),
        ("inputs must be finite", "inputs must be finite"),
        ("epochs of another kind", "epochs of another kind"),
        ("", ""),
    ],
)
def test_messages_name_flags_where_they_start_with_an_argument(message, shown):
    flags = {"groups": "--groups", "test_size": "--test-size", "amp": "--amp", "keep_best": "--keep-best"}
    assert in_flags(message, {**flags, "epochs": "--epochs"}) == shown


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
