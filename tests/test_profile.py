"""``profile=`` and ``--profile``: the named ranges are in the trace, the table's shares add up, and off is off."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

import pytest
import torch
from _resume_run import TRAINERS, Bomb, Countdown, assert_same, dmtg, learned, make, stg
from _settings import new_seed
from _tiny import write_tiny

from pymtg import DataMap
from pymtg._ranges import each, span, stage, watched
from pymtg.cli import main
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.trainers import _profile

STEP = {"data", "forward", "loss", "backward", "optimizer"}
IN_STAGES = {
    "stg": {
        "joint": STEP | {"snapshot", "validation", "checkpoint", "the rest"},
        "grouping": {"gram", "clustering", "checkpoint", "the rest"},
        "group 0": STEP | {"validation", "checkpoint", "the rest"},
        "group 1": STEP | {"validation", "checkpoint", "the rest"},
    },
    "dmtg": {
        "warm start": STEP | {"validation", "checkpoint", "the rest"},
        "dmtg": STEP | {"assignment", "map", "snapshot", "validation", "checkpoint", "the rest"},
        "fine-tuning": STEP | {"validation", "checkpoint", "the rest"},
    },
}


def events(directory):
    content = json.loads((directory / "pymtg.pt.trace.json").read_text(encoding="utf-8"))
    return [event for event in content["traceEvents"] if event.get("ph") == "X"]


def inside(event, outer):
    return outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"] + 1


@pytest.fixture(scope="module", params=IN_STAGES)
def profiled(request, tmp_path_factory):
    """A profiled run of either method: its name, seed, trainer and directory."""
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    directory = tmp_path_factory.mktemp(request.param)
    places = {"profile": directory / "new" / "p", "checkpoint_dir": directory / "kept"}
    options = {"specialise": "one-by-one"} if request.param == "stg" else {}
    trainer = TRAINERS[request.param](seed, **places, **options)
    return request.param, seed, trainer.fit(make(seed), make(seed + 1)), directory / "new" / "p"


def test_the_trace_has_the_stages_and_what_goes_on_in_them(profiled):
    method, _, _, directory = profiled
    found = events(directory)
    named = [event for event in found if event["cat"] == "user_annotation"]
    for name, spans in IN_STAGES[method].items():
        stages = [event for event in named if event["name"] == name]
        for inner in spans - {"the rest"}:
            assert any(inside(e, s) for s in stages for e in named if e["name"] == inner), (name, inner)
    losses = [event for event in named if event["name"] == "loss"]
    operators = [event for event in found if event["name"].startswith("pymtg::")]
    assert operators
    assert any(inside(event, loss) for event in operators for loss in losses)
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


def test_the_table_has_all_time_once(profiled):
    method, _, trainer, directory = profiled
    told = json.loads((directory / "profile.json").read_text(encoding="utf-8"))
    assert sum(row["seconds"] for row in told["spans"]) == pytest.approx(told["seconds"], rel=1e-6)
    assert sum(row["share"] for row in told["spans"]) == pytest.approx(1, rel=1e-6)
    assert all(row["seconds"] > 0 for row in told["spans"])
    stages = {}
    for row in told["spans"]:
        stages.setdefault(row["stage"], set()).add(row["name"])
    assert stages.pop("") == {"outside the stages"}
    assert stages == IN_STAGES[method]
    calls = {(row["stage"], row["name"]): row["calls"] for row in told["spans"]}
    for result in trainer.result_.stages:
        assert calls[result.name, "backward"] == calls[result.name, "optimizer"] == 10 * result.epochs
        assert calls[result.name, "validation"] == result.epochs
    text = (directory / "profile.txt").read_text(encoding="utf-8")
    shares = [float(line.split()[-1].rstrip("%")) for line in text.split("torch's operators")[0].splitlines()[4:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))
    operators = {row["name"] for row in told["traced"]["operators"]}
    assert "aten::addmm" in operators
    assert {line.split("  ")[0] for line in text.split("\n---")[-1].splitlines()[1:]} <= operators


def test_a_profile_changes_nothing_that_is_learned(profiled):
    method, seed, trainer, _ = profiled
    without = TRAINERS[method](seed).fit(make(seed), make(seed + 1))
    assert_same(learned(trainer), learned(without))


def test_a_long_run_has_a_short_trace(seed, tmp_path):
    sizes, options = [], {"snapshot_epochs": [1], "num_groups": 1, "specialised_epochs": 1, "keep_best": False}
    for epochs in (3, 30):
        stg(seed, epochs=epochs, profile=tmp_path / str(epochs), **options).fit(make(seed))
        found = events(tmp_path / str(epochs))
        sizes.append(len(found))
        count = Counter(event["name"] for event in found if event["cat"] == "user_annotation")
        assert count["backward"] <= 2 * _profile.STEPS
    assert sizes[1] < 1.2 * sizes[0]


def test_windows_are_bounded_too(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(_profile, "WINDOWS", 2)
    stg(seed, profile=tmp_path, epochs=1, specialised_epochs=1).fit(make(seed), make(seed + 1))
    names = {event["name"] for event in events(tmp_path)}
    assert "joint" in names
    assert not {name for name in names if name.startswith("group ")}
    told = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert len({row["stage"] for row in told["spans"]}) > 3


def test_a_run_that_ends_early_leaves_its_profile(seed, tmp_path):
    with pytest.raises(Bomb):
        stg(seed, Countdown(25), profile=tmp_path, keep_best=False).fit(make(seed))
    assert {event["name"] for event in events(tmp_path)} >= STEP | {"joint"}
    assert "joint" in (tmp_path / "profile.txt").read_text(encoding="utf-8")
    with torch.profiler.profile():  # nothing was left running
        pass


def test_two_profilers_are_refused_and_so_is_no_path(seed, tmp_path):
    with torch.profiler.profile(), pytest.raises(InvalidArgumentError, match="profile must be None while another"):
        stg(seed, profile=tmp_path, keep_best=False).fit(make(seed))
    with pytest.raises(InvalidTypeError, match="profile must be a path or None; got 3"):
        dmtg(seed, profile=3)


class Watch:
    def __init__(self):
        self.told = []

    def stage(self, name):
        return self.span(f"stage {name}")

    @contextlib.contextmanager
    def span(self, name):
        self.told.append(name)
        yield
        self.told.append(f"/{name}")

    def step(self):
        self.told.append("step")


def test_spans_are_told_to_the_watch_of_their_block_only():
    watch, items = Watch(), iter([1, 2])
    assert span("a") is span("b") is stage("c")
    assert each("data", items) is items
    with watched(watch):
        with stage("s"), span("a"):
            pass
        assert list(each("data", items)) == [1, 2]
        data_map = DataMap(3, layout=stg(0).layout)
        data_map.update(torch.rand(3, 5), torch.arange(3))
        data_map.gram()
    with span("later"):
        pass
    steps = ["step", "data", "/data"] * 3  # the third finds the end
    assert watch.told == ["stage s", "a", "/a", "/stage s", *steps, "gram", "/gram"]


def test_the_command_prints_the_table(tmp_path, capsys):
    arguments = ["stg", "--data", write_tiny(tmp_path), "--epochs", "2", "--groups", "2", "--hidden", "8"]
    arguments += ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--profile", str(tmp_path / "p")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "p" / "profile.txt").read_text(encoding="utf-8") in printed
    assert {event["name"] for event in events(tmp_path / "p")} >= {"joint", "grouping", "groups 0-1"}
