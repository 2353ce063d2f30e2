"""``pymtg dmtg``: what it writes, what it prints, how it fails."""

from __future__ import annotations

import html
import json
import os
import re

import numpy as np
import pytest
import torch
from _cli_runs import assert_ctrl_c_ends_it, assert_one_line
from _tiny import write_tiny
from PIL import Image

from pymtg import TaskLayout
from pymtg._cli.networks import Network
from pymtg._cli.reference import load_reference
from pymtg.cli import main
from pymtg.data import load
from pymtg.metrics import normalized_gain, score, total_error
from pymtg.nets import load_grouped

FILES = {"metrics.json", "groups.json", "assignment.png", "model.safetensors", "report.html"}


def run(*words):
    assert main(list(map(str, words))) == 0


def read(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("mulan"))


@pytest.fixture(scope="module")
def tiny(spec):
    """Words of a run that takes no time."""
    return ["dmtg", "--data", spec, "--epochs", "2", "--hidden", "8", "--groups", "2", "--lr", "0.01", "--quiet"]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """The directory of a run with no other options."""
    out = tmp_path_factory.mktemp("plain") / "new"
    run(*tiny, "--out", out)
    return out


def learned(directory):
    """What a run learned, without what it took or was asked."""
    metrics = read(directory / "metrics.json")
    stages = [(stage["loss"], stage["parameters"]) for stage in metrics["stages"]]
    return metrics["scores"], stages, metrics["parameters"]


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take longest, and are tried elsewhere."""
    monkeypatch.setattr("pymtg.report.figures.png", lambda *_: b"")
    monkeypatch.setattr("pymtg.report.html.png", lambda *_: b"")


# a run ---------------------------------------------------------------------------------------------------------------


def test_it_writes_its_files_and_nothing_else(plain):
    assert set(os.listdir(plain)) == FILES


def test_metrics_follow_the_schema(plain):
    metrics = read(plain / "metrics.json")
    assert set(metrics["scores"]) == {"dmtg"}
    assert len(metrics["scores"]["dmtg"]["tasks"]) == 6
    assert metrics["seconds"] == pytest.approx(sum(stage["seconds"] for stage in metrics["stages"]))
    assert metrics["parameters"]["unpruned"] == 2 * (6 * 8 + 8 + 8 * 6 + 6) + 2 * 6
    assert metrics["parameters"]["dmtg"] < metrics["parameters"]["unpruned"]
    assert len(metrics["entropy"]) == 3
    assert metrics["entropy"][0] == pytest.approx(2 * np.log(2))
    assert set(metrics["temperature"]) == {2.5}
    assert 1 <= metrics["branches_used"] <= metrics["num_groups"] == 2
    assert "normalized_gain" not in metrics
    errors = metrics["total_error"]["dmtg"]
    assert errors == total_error(metrics["scores"]["dmtg"]).to_dict()
    assert errors["total"] == pytest.approx(
        100 * sum(1 - t["accuracy"] for t in metrics["scores"]["dmtg"]["tasks"].values())
    )


def test_groups_are_the_most_probable_branches(plain):
    groups = read(plain / "groups.json")
    assert len(groups["tasks"]) == 6
    for task in groups["tasks"].values():
        assert sum(task["memberships"]) == pytest.approx(1)
        assert task["label"] == int(np.argmax(task["memberships"]))


def test_the_saved_model_gives_the_scores_of_the_run(plain, spec):
    test = load(spec, 0).test
    inputs, targets = (torch.stack(part) for part in zip(*[test[i][:2] for i in range(len(test))], strict=True))
    net = load_grouped(plain / "model.safetensors")
    with torch.no_grad():
        again = score(net(inputs).sigmoid(), targets, net.layout)
    metrics = read(plain / "metrics.json")
    assert again.mean == pytest.approx(metrics["scores"]["dmtg"]["mean"], abs=1e-6)
    assert sum(p.numel() for p in net.parameters()) == metrics["parameters"]["dmtg"]
    labels = [task["label"] for task in read(plain / "groups.json")["tasks"].values()]
    assert [net.branch_ids[k] for k in net.labels] == labels


def test_the_report_stands_alone_and_speaks_of_dmtg(plain):
    text = (plain / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    references = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in references)
    words = re.sub(r"base64,[^\"]*|<pre.*?</pre>", "", text, flags=re.S)  # the command is that of the test run
    for part in ("DMTG on tiny", "chose the same branch", "The model that is left", "Assignment", "&lt;y0&gt;"):
        assert part in words
    for part in ("stg", "membership", "Data map", "<y0>", "nan"):
        assert part not in words, part


def test_the_picture_is_valid_and_of_a_sane_size(plain):
    with Image.open(plain / "assignment.png") as image:
        image.verify()
        assert 400 <= image.size[0] <= 2000
        assert 300 <= image.size[1] <= 2000


def test_it_prints_scores_groups_and_the_report(tiny, plain, tmp_path, capsys):
    words = [word for word in tiny if word != "--quiet"]
    run(*words, "--out", tmp_path, "--reference", f"{plain / 'metrics.json'}:dmtg")
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in ("balanced accuracy", "members (probability)", "total error of dmtg", "+0.00 %", "pruned: "):
        assert part in printed.out
    assert f"report: {tmp_path / 'report.html'}" in printed.out
    assert learned(tmp_path) == learned(plain)  # the same words, the same figures


def test_quiet_says_nothing(tiny, tmp_path, capsys, undrawn):
    run(*tiny, "--out", tmp_path, "--device", "cpu")
    assert capsys.readouterr() == ("", "")
    assert read(tmp_path / "metrics.json")["settings"]["device"] == "cpu"


def test_data_maps_are_recorded_where_asked_for(tiny, tmp_path):
    run(*tiny, "--out", tmp_path, "--data-map")
    assert set(os.listdir(tmp_path)) == FILES | {"data_map.safetensors", "data_map.png"}
    assert 'id="map"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    run("cluster", tmp_path / "data_map.safetensors", "--groups", "2", "--quiet")


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "3"],
        ["--seed", "1"],
        ["--groups", "3"],
        ["--warm-epochs", "1"],
        ["--finetune-epochs", "1"],
        ["--sampling", "hard"],
        ["--sampling", "softmax"],
        ["--sampling", "per_sample"],
        ["--temperature", "0.5"],
        ["--temperature", "2.5:0.1"],
        ["--assignment-lr", "0.3"],
        ["--assignment-warmup", "0.6"],
        ["--assignment-init", "diagonal"],
        ["--assignment-init", "normal"],
        ["--assignment", "diagonal"],
        ["--assignment", "random"],
        ["--entropy-weight", "2"],
        ["--trunk", "5"],
        ["--hidden", "8,8"],
        ["--lr", "0.02"],
        ["--batch-size", "16"],
        ["--test-size", "0.5"],
        ["--val-size", "0.25"],
        ["--amp", "bfloat16"],
    ],
    ids=" ".join,
)
def test_every_option_changes_what_is_learned(tiny, plain, tmp_path, undrawn, words):
    run(*tiny, "--out", tmp_path, *words)
    assert learned(tmp_path) != learned(plain)


def last_stage(directory):
    return read(directory / "metrics.json")["stages"][-1]["loss"]


def test_schedules_differ(tiny, tmp_path, undrawn):
    found = {}
    for schedule in ("linear", "exponential", "cosine"):
        run(*tiny, "--epochs", "4", "--out", tmp_path, "--temperature", "4:0.1", "--schedule", schedule)
        found[schedule] = read(tmp_path / "metrics.json")["temperature"]
    assert len({tuple(curve) for curve in found.values()}) == 3
    assert all(curve[0] == 4 and sorted(curve, reverse=True) == curve for curve in found.values())


def test_a_frozen_trunk_changes_the_fine_tuning(tiny, tmp_path, undrawn):
    words = [*tiny, "--out", tmp_path, "--trunk", "5", "--finetune-epochs", "2"]
    run(*words)
    free = last_stage(tmp_path)
    run(*words, "--freeze-trunk")
    assert last_stage(tmp_path) != free


def test_trunk_and_gradient_scaling_reach_the_network():
    layout = TaskLayout.binary(["a", "b", "c"])
    net = Network("mlp", (2, 3), (8,)).branched("5,4", 2, True)(layout)
    assert (net.gradient_scaling, net.num_branches, net.features) == (True, 2, 8)
    assert net.trunk.out_features == 4
    plain = Network("mlp", (6,), (8,)).branched(None, 3, False)(layout)
    assert (plain.gradient_scaling, plain.num_branches, plain.trunk) == (False, 3, None)


def test_branches_are_dropped_unless_they_are_to_be_kept(tiny, tmp_path, undrawn):
    words = [*tiny, "--out", tmp_path, "--groups", "5", "--epochs", "12", "--assignment-lr", "0.5"]
    words += ["--temperature", "1:0.05"]
    run(*words, "--keep-branches")
    assert read(tmp_path / "metrics.json")["settings"]["drop_branches"] is False
    run(*words)
    assert read(tmp_path / "metrics.json")["settings"]["drop_branches"] is True


@pytest.mark.parametrize("groups", ["1", "9"], ids=["one group", "more groups than tasks"])
def test_any_number_of_groups_will_do(tiny, tmp_path, groups):
    run(*tiny, "--out", tmp_path, "--groups", groups)
    metrics = read(tmp_path / "metrics.json")
    assert metrics["num_groups"] == int(groups)
    assert metrics["branches_used"] <= min(6, int(groups))
    assert set(os.listdir(tmp_path)) == FILES


def test_keep_best_keeps_an_epoch(tiny, tmp_path, undrawn):
    run(*tiny, "--out", tmp_path, "--epochs", "4", "--lr", "0.3", "--val-size", "0.2", "--keep-best")
    (stage,) = read(tmp_path / "metrics.json")["stages"]
    assert stage["best_epoch"] == 1 + int(np.argmax(stage["val_score"]))
    assert f"dmtg (epoch {stage['best_epoch']} of 4 kept)" in (tmp_path / "report.html").read_text(encoding="utf-8")


# a reference ---------------------------------------------------------------------------------------------------------


def test_the_gain_over_a_stored_run(tiny, plain, tmp_path, undrawn):
    run("stg", *tiny[1:], "--out", tmp_path / "stg")
    stored = tmp_path / "stg" / "metrics.json"
    for method, word in (("mtl", stored), ("stg_hard", f"{stored}:stg_hard")):
        run(*tiny, "--out", tmp_path, "--reference", word)
        metrics = read(tmp_path / "metrics.json")
        truth = normalized_gain(metrics["scores"]["dmtg"], read(stored)["scores"][method]).to_dict()
        assert metrics["normalized_gain"]["dmtg"] == truth
        assert metrics["reference"] == {"source": str(stored), "method": method}
        page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert f"<dt>over</dt><dd>{method} of {stored}</dd>" in page
        assert learned(tmp_path) == learned(plain)


def test_a_stored_run_may_begin_with_a_byte_order_mark(tmp_path):
    scores = {"mtl": {"mean": {}, "tasks": {"a": {"accuracy": 0.5}}}}
    (tmp_path / "metrics.json").write_text(json.dumps({"scores": scores}), encoding="utf-8-sig")
    assert load_reference(f"{tmp_path / 'metrics.json'}", ["a"]).scores == scores["mtl"]


# errors --------------------------------------------------------------------------------------------------------------


TRAIN = ["dmtg", "--data", "digits", "--epochs", "1", "--hidden", "8", "--quiet", "--out", "{tmp}/out"]
RANDOM = ["--assignment", "random"]
OF_A_LEARNED = ["--sampling", "hard", "--temperature", "0.1:1", "--schedule", "linear", "--assignment-lr", "3"]
OF_A_LEARNED += ["--assignment-warmup", "0.5", "--assignment-init", "normal", "--entropy-weight", "5"]
OF_A_LEARNED += ["--balance-weight", "7"]
MISTAKES = {  # what is wrong: the words, and what the line must name
    "groups auto": ([*TRAIN, "--groups", "auto"], "--groups.*integer"),
    "no groups": ([*TRAIN, "--groups", "0"], "--groups"),
    "epochs": ([*TRAIN, "--epochs", "0"], "--epochs"),
    "warm epochs": ([*TRAIN, "--warm-epochs", "-1"], "--warm-epochs"),
    "sampling": ([*TRAIN, "--sampling", "dice"], "--sampling.*'dice'"),
    "sampling fixed": ([*TRAIN, "--sampling", "fixed"], "--sampling.*'fixed'"),
    "temperature": ([*TRAIN, "--temperature", "hot"], "--temperature.*'hot'"),
    "temperature 0": ([*TRAIN, "--temperature", "0"], "--temperature"),
    "temperature to 0": ([*TRAIN, "--temperature", "2:0"], "--temperature"),
    "temperature nan": ([*TRAIN, "--temperature", "nan"], "--temperature"),
    "no end": ([*TRAIN, "--temperature", "2.5:"], "--temperature.*'2.5:'"),
    "three ends": ([*TRAIN, "--temperature", "3:2:1"], "--temperature.*'3:2:1'"),
    "schedule": ([*TRAIN, "--schedule", "wavy"], "--schedule.*'wavy'"),
    "schedule to nowhere": ([*TRAIN, "--schedule", "linear"], "--schedule linear.*--temperature"),
    "constant with an end": ([*TRAIN, "--temperature", "2:1", "--schedule", "constant"], "--schedule.*constant"),
    "assignment": ([*TRAIN, "--assignment", "lucky"], "--assignment.*'lucky'"),
    "assignment lr": ([*TRAIN, "--assignment-lr", "0"], "--assignment-lr.*0"),
    "assignment warm-up": ([*TRAIN, "--assignment-warmup", "1"], "--assignment-warmup.*1"),
    "assignment init": ([*TRAIN, "--assignment-init", "zeros"], "--assignment-init.*'zeros'"),
    "fixed, one option": (
        [*TRAIN, *RANDOM, "--temperature", "2.5"],
        "--temperature is for --assignment learned; random",
    ),
    "fixed, a switch": ([*TRAIN, "--assignment", "diagonal", "--keep-branches"], "--keep-branches is for .*; diagonal"),
    "fixed, all of them": ([*TRAIN, *RANDOM, *OF_A_LEARNED], f": {', '.join(OF_A_LEARNED[::2])} are for --assignment "),
    "entropy": ([*TRAIN, "--entropy-weight", "-1"], "--entropy-weight.*-1"),
    "trunk": ([*TRAIN, "--trunk", "64,x"], "--trunk.*'64,x'"),
    "hidden": ([*TRAIN, "--hidden", "0"], "--hidden.*'0'"),
    "nothing to freeze": ([*TRAIN, "--freeze-trunk"], "--freeze-trunk.*--trunk"),
    "nothing frozen": ([*TRAIN, "--freeze-trunk", "--trunk", "8"], "--freeze-trunk.*--finetune-epochs"),
    "keep best of nothing": ([*TRAIN, "--keep-best"], "--keep-best"),
    "lr": ([*TRAIN, "--lr", "inf"], "--lr.*inf"),
    "device": ([*TRAIN, "--device", "toaster"], "--device.*'toaster'"),
    "unknown data": ([*TRAIN, "--data", "mnist"], "--data.*'mnist'"),
    "out": ([*TRAIN, "--out", "{tmp}/file"], "--out.*file"),
    "out in /proc": ([*TRAIN, "--out", "/proc/nowhere"], "--out.*/proc/nowhere"),
    "no reference": ([*TRAIN, "--reference", "{tmp}/none.json"], "--reference.*none.json.*No such file"),
    "reference no JSON": ([*TRAIN, "--reference", "{tmp}/file"], "--reference.*JSON.*file"),
    "reference of a list": ([*TRAIN, "--reference", "{tmp}/list.json"], "--reference.*no scores"),
    "reference without tasks": ([*TRAIN, "--reference", "{tmp}/flat.json"], "--reference.*by task"),
    "reference method": ([*TRAIN, "--reference", "{tmp}/other.json:stl"], r"--reference.*\(mtl, dmtg\).*'stl'"),
    "reference of other tasks": ([*TRAIN, "--reference", "{tmp}/other.json"], "--reference.*same tasks.*'is-0'"),
    "reference unnamed": ([*TRAIN, "--reference", "{tmp}/two.json"], "--reference.*a, b.*none was named"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A directory of files that are not what they are taken for."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "file").write_text("no run")
    (tmp / "list.json").write_text("[1, 2]")
    (tmp / "flat.json").write_text('{"scores": {"mtl": 0.5}}')
    other = {"mean": {}, "tasks": {"y": {"accuracy": 0.5}}}
    (tmp / "other.json").write_text(json.dumps({"scores": {"mtl": other, "dmtg": other}}))
    (tmp / "two.json").write_text(json.dumps({"scores": {"a": other, "b": other}}))
    return tmp


@pytest.mark.parametrize(("words", "named"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_one_line_and_code_2(bad_files, capsys, words, named):
    assert_one_line(words, named, bad_files, capsys, begin="pymtg dmtg: ")


def test_ctrl_c_ends_with_130_and_one_line(tmp_path):
    assert_ctrl_c_ends_it(TRAIN[:3], tmp_path / "out")


# regression ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Words of a run on a regression set of 4 targets."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 5))
    targets = inputs @ rng.normal(size=(5, 4)) + rng.normal(size=(120, 4)) * [0.1, 1, 3, 9]
    head = [f"@attribute {name} numeric" for name in [*(f"f{i}" for i in range(5)), *(f"t{i}" for i in range(4))]]
    rows = [",".join(f"{v:.4f}" for v in row) for row in np.column_stack([inputs, targets])]
    file = tmp_path_factory.mktemp("regression") / "r.arff"
    file.write_text("\n".join(["@relation r", *head, "@data", *rows, ""]))
    spec = f"mulan:{file.with_suffix('')}"
    return ["dmtg", "--data", spec, "--targets", "4", "--epochs", "2", "--hidden", "8", "--groups", "2", "--quiet"]


def test_regression_tasks_have_a_gain_and_no_total_error(regression, tmp_path):
    words = [*regression, "--val-size", "0.2", "--finetune-epochs", "1"]
    run(*words, "--out", tmp_path / "first", "--data-map")
    run(*words, "--out", tmp_path, "--epochs", "4", "--reference", tmp_path / "first" / "metrics.json")
    metrics = read(tmp_path / "metrics.json")
    assert set(metrics["scores"]["dmtg"]["mean"]) == {"r2", "rmse"}
    assert metrics["total_error"] == {}
    assert set(metrics["normalized_gain"]["dmtg"]["tasks"]) == {"t0", "t1", "t2", "t3"}
    assert metrics["reference"]["method"] == "dmtg"
    page = (tmp_path / "first" / "report.html").read_text(encoding="utf-8")
    assert "In a regression task" in page
    assert load_grouped(tmp_path / "model.safetensors").layout.kinds == ("regression",) * 4
