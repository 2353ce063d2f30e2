"""Baselines and comparisons: shared networks, honest costs, equal budgets, standard errors and ties."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pymtg import DMTGTrainer, STGTrainer, TaskGroups, TaskLayout
from pymtg.data import TaskData, from_arrays
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import mlp
from pymtg.trainers import (
    ABLATIONS,
    METHODS,
    VIEWS,
    ComparisonView,
    MethodResult,
    MethodSummary,
    Summary,
    TrainConfig,
    compare,
    ensemble,
    mtl,
    random_groups,
    stl,
)
from pymtg.trainers._methods import permuted_rows, split_epochs
from pymtg.trainers._seeding import cpu_threads
from pymtg.trainers.compare import longest_stage

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
CONFIG = TrainConfig(epochs=3, batch_size=16, device="cpu", num_threads=1)
MODEL = mlp(5, (8,))
# rows of different softness, so that a permutation can be told
MEMBERSHIPS = np.array([[1.0, 0.0], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])


def part(rows, seed, layout=LAYOUT):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(99))
    counts = torch.tensor([max(2, c) for c in LAYOUT.num_classes])
    targets = (torch.sigmoid(inputs @ weights) * counts).long().clamp(max=counts - 1)
    return from_arrays(inputs, targets[:, : layout.num_tasks], layout)


def make(seed=0, val=True):
    return TaskData("toy", LAYOUT, part(50, seed), part(40, seed + 100), part(30, seed + 200) if val else None)


def test_mtl_is_the_joint_network():
    data = make()
    trainer = STGTrainer(MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=3, device="cpu").fit(data.train)
    alone = mtl(MODEL, LAYOUT, data.train, data.test, config=CONFIG, seed=3)
    assert alone.scores == trainer.evaluate(data.test)["mtl"]
    joint = trainer.result_.joint
    assert [r.task_losses for r in alone.stages[0].history] == [r.task_losses for r in joint.history]
    assert (alone.name, alone.epochs, alone.parameters) == ("mtl", 3, joint.parameters)


def test_what_torch_imports_late_is_in_no_networks_seconds():
    code = """
import sys, torch
from pymtg import TaskLayout
from pymtg.nets import mlp
from pymtg.trainers import TrainConfig, mtl
build, late = TrainConfig.build_optimizer, []
def watched(self, network):
    there = set(sys.modules)
    made = build(self, network)
    late.extend(set(sys.modules) - there)
    return made
TrainConfig.build_optimizer = watched
data = torch.ones(4, 2), torch.tensor([[0], [1], [0], [1]])
mtl(mlp(2, (2,)), TaskLayout.binary(["a"]), data, data, config=TrainConfig(epochs=1), progress=False)
print(len(late))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0"


def test_an_ensemble_of_one_is_mtl():
    data = make()
    one = ensemble(MODEL, LAYOUT, data.train, data.test, num_networks=1, config=CONFIG)
    assert one.scores == mtl(MODEL, LAYOUT, data.train, data.test, config=CONFIG).scores
    three = ensemble(MODEL, LAYOUT, data.train, data.test, num_networks=3, config=CONFIG)
    assert [stage.name for stage in three.stages] == ["joint", "member 1", "member 2"]
    assert three.parameters == 3 * one.parameters
    assert three.epochs == 9
    assert three.seconds == pytest.approx(sum(stage.seconds for stage in three.stages))
    assert len({stage.history[0].loss for stage in three.stages}) == 3


def test_stl_trains_one_task_networks():
    data = make()
    result = stl(MODEL, LAYOUT, data.train, data.test, config=CONFIG)
    assert [stage.name for stage in result.stages] == ["task a", "task b", "task c", "task d"]
    assert all(len(record.task_losses) == 1 for stage in result.stages for record in stage.history)
    assert list(result.scores.tasks) == list(LAYOUT.names)
    samples = [data.train[i] for i in range(50)]
    assert stl(MODEL, LAYOUT, samples, data.test, config=CONFIG).scores == result.scores


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_worker_processes_change_nothing():
    data = make()
    samples = [data.train[i] for i in range(50)]
    config = TrainConfig(epochs=1, batch_size=16, device="cpu", num_threads=1, num_workers=1)
    state = torch.get_rng_state()
    result = mtl(MODEL, LAYOUT, samples, data.test, config=config)
    assert torch.equal(state, torch.get_rng_state())
    assert result.scores == mtl(MODEL, LAYOUT, data.train, data.test, config=config).scores


def test_random_groups_keep_sizes_and_softness():
    shuffled = permuted_rows(MEMBERSHIPS, 0)
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, MEMBERSHIPS))
    assert any(not np.array_equal(permuted_rows(MEMBERSHIPS, s), MEMBERSHIPS) for s in range(4))
    data = make()
    result = random_groups(MODEL, LAYOUT, data.train, data.test, memberships=MEMBERSHIPS, config=CONFIG)
    assert [stage.name for stage in result.stages] == ["random 0", "random 1"]
    first = result.stages[0].history[0]
    assert first.loss == pytest.approx(float(np.dot(shuffled[:, 0], first.task_losses)), rel=1e-5)


def test_bad_baselines():
    data = make()
    for bad in (MEMBERSHIPS[:3], MEMBERSHIPS * 2, -MEMBERSHIPS, np.ones(4)):
        with pytest.raises(InvalidArgumentError, match="memberships must"):
            random_groups(MODEL, LAYOUT, data.train, data.test, memberships=bad, config=CONFIG)
    with pytest.raises(InvalidArgumentError, match="num_networks must be at least 1; got 0"):
        ensemble(MODEL, LAYOUT, data.train, data.test, num_networks=0)
    with pytest.raises(InvalidArgumentError, match="seed must be at least 0"):
        mtl(MODEL, LAYOUT, data.train, data.test, seed=-1)
    with pytest.raises(InvalidTypeError, match="model must be a factory"):
        stl(MODEL(LAYOUT), LAYOUT, data.train, data.test)


@pytest.fixture(scope="module")
def comparison():
    return compare(make, MODEL, seeds=(0, 1, 2), num_groups=2, max_epochs=5, config=CONFIG, progress=False)


def test_every_view_has_every_method(comparison):
    assert list(comparison.views) == ["fixed", "best", "equal"]
    for view in comparison.views.values():
        assert tuple(view.methods) == METHODS
        for summary in view.methods.values():
            assert len(summary.results) == 3
            assert all(len(figure.values) == 3 for figure in summary.metrics.values())


def test_epochs_of_the_views(comparison):
    def epochs(view):
        return {name: summary.epochs.mean for name, summary in comparison.views[view].methods.items()}

    assert epochs("fixed") == {
        "stg_soft": 9, "stg_hard": 9, "stg_joint": 3 + 2 * 2, "mtl": 3, "ensemble": 6, "random_groups": 6, "stl": 12,
        "dmtg": 3 * 2, "dmtg_warm": 3 + 2 * 2,
    }  # fmt: skip
    assert epochs("best") == {
        "stg_soft": 15, "stg_hard": 15, "stg_joint": 15, "mtl": 5, "ensemble": 10, "random_groups": 10, "stl": 20,
        "dmtg": 5 * 2, "dmtg_warm": 5 + 5 * 2,
    }  # fmt: skip
    assert epochs("equal") == {**dict.fromkeys(METHODS, 9), "dmtg": 4 * 2}
    assert split_epochs(9, 4) == (3, 2, 2, 2)
    assert split_epochs(2, 3) == (1, 1, 1)


def test_the_longest_stage_is_known_before(comparison):
    for view, found in comparison.views.items():
        for method, summary in found.methods.items():
            longest = max(stage.epochs for result in summary.results for stage in result.stages)
            assert longest_stage([method], [view], 3, 5, 2, 4) == longest, (view, method)
            assert longest_stage([method], [view], 3, 5, "auto", 4) >= longest
    assert longest_stage(METHODS, VIEWS, 3, 5, 2, 4) == 9
    assert longest_stage(METHODS, ["fixed", "best"], 3, 5, 2, 4) == 5


def test_networks_are_shared_where_they_are_equal(comparison):
    fixed = comparison.views["fixed"].methods
    joint = fixed["mtl"].results[0].stages[0]
    assert all(fixed[m].results[0].stages[0] is joint for m in ("stg_soft", "stg_hard", "stg_joint", "ensemble"))
    assert fixed["stg_soft"].results[0].seconds > joint.seconds  # and yet each pays for it
    assert comparison.views["equal"].methods["stg_soft"].results[0].stages == fixed["stg_soft"].results[0].stages


def test_the_best_view_keeps_best_epochs(comparison):
    for summary in comparison.views["best"].methods.values():
        for stage in summary.results[0].stages:
            scores = [record.val_score for record in stage.history]
            assert stage.best_epoch == 1 + int(np.argmax(scores))
    assert comparison.views["fixed"].methods["mtl"].results[0].stages[0].history[0].val_score is None


def test_comparing_equals_training_by_hand(comparison):
    data = make(1)
    trainer = STGTrainer(MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=1, device="cpu").fit(data.train)
    by_hand = trainer.evaluate(data.test)
    fixed = comparison.views["fixed"].methods
    assert fixed["stg_soft"].results[1].scores == by_hand["stg_soft"]
    assert fixed["stg_hard"].results[1].scores == by_hand["stg_hard"]
    assert fixed["stl"].results[1].scores == stl(MODEL, LAYOUT, data.train, data.test, config=CONFIG, seed=1).scores
    memberships = trainer.groups_.memberships
    by_hand = random_groups(MODEL, LAYOUT, data.train, data.test, memberships=memberships, config=CONFIG, seed=1)
    assert fixed["random_groups"].results[1].scores == by_hand.scores


def test_every_seeds_groups_are_kept(comparison):
    methods = comparison.views["fixed"].methods
    has = {name for name, summary in methods.items() if summary.results[0].groups is not None}
    assert has == {"stg_soft", "stg_hard", "stg_joint", "dmtg", "dmtg_warm", "random_groups"}
    assert {name for name, summary in methods.items() if "groups" in summary.to_dict()} == has
    data = make(1)
    stg = STGTrainer(MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=1, device="cpu").fit(data.train)
    assert methods["stg_soft"].results[1].groups == methods["stg_joint"].results[1].groups == stg.groups_
    dmtg = DMTGTrainer(MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=1, device="cpu").fit(data.train)
    found = methods["dmtg"].results[1].groups
    assert found.labels.tolist() == dmtg.groups_.labels.tolist()
    assert found.memberships.tolist() == dmtg.groups_.memberships.tolist()
    drawn = methods["random_groups"].results[1].groups
    assert drawn.memberships.tolist() == permuted_rows(stg.groups_.memberships, 1).tolist()
    written = methods["stg_soft"].to_dict()["groups"]
    assert len(written) == 3
    assert TaskGroups.from_dict(json.loads(json.dumps(written[1]))) == stg.groups_


def test_written_out(comparison, tmp_path):
    comparison.to_json(tmp_path / "c.json")
    read = json.loads((tmp_path / "c.json").read_text())
    figure = read["views"]["best"]["methods"]["stl"]["metrics"]["roc_auc"]
    assert figure["mean"] == pytest.approx(sum(figure["values"]) / 3)
    assert read["seeds"] == [0, 1, 2]
    text, markdown = comparison.to_text(), comparison.to_markdown("f1")
    for name in ("STG, soft", "STG, joint start", "MTL ensemble", "random groups", "STL"):
        assert text.count(name) == markdown.count(name) == 3
    assert text.index("balanced accuracy") < text.index("roc auc")
    assert markdown.index("| f1 ") < markdown.index("| roc auc ")
    with pytest.raises(InvalidArgumentError, match=r"metric must be one of .*got 'luck'"):
        comparison.to_text("luck")


def test_without_a_validation_set_some_training_rows_are_held_out():
    for data in (make(val=False), TaskData("list", LAYOUT, [make().train[i] for i in range(50)], make().test)):
        best = compare(data, MODEL, methods=["mtl"], views=["best"], seeds=[0], max_epochs=3, config=CONFIG)
        summary = best.views["best"].methods["mtl"]
        assert summary.results[0].stages[0].history[0].val_score is not None
        assert summary.metrics["f1"].stderr is None


def test_number_of_groups_may_be_chosen():
    chosen = compare(make, MODEL, methods=["ensemble"], views=["equal"], seeds=[0], num_groups="auto", config=CONFIG)
    assert chosen.views["equal"].methods["ensemble"].epochs.mean >= 3 * len(LAYOUT) / 2
    auto = compare(make, MODEL, methods=["stg_soft"], views=["fixed"], seeds=[0], num_groups="auto", config=CONFIG)
    assert auto.views["fixed"].methods["stg_soft"].to_dict()["groups"][0]["num_groups"] >= 2


def summary(name, values):
    return MethodSummary(name, {"f1": Summary(values)}, Summary((1.0,)), Summary((1.0,)), Summary((1.0,)), ())


def test_standard_errors_and_ties():
    values = (0.5, 0.7, 0.9)
    figure = Summary(values)
    assert figure.mean == pytest.approx(0.7)
    assert figure.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    close, far = (0.51, 0.69, 0.9), (0.4, 0.61, 0.79)
    view = ComparisonView("fixed", "", {n: summary(n, v) for n, v in zip("abc", (values, close, far), strict=True)})
    assert view.difference("a", "b", "f1").tie
    gap = view.difference("a", "c", "f1")  # differences 0.1, 0.09, 0.11: far more than their error
    assert gap.mean == pytest.approx(0.1)
    assert gap.stderr == pytest.approx(0.01 / math.sqrt(3))
    assert not gap.tie
    assert view.difference("a", "a", "f1").tie
    single = ComparisonView("fixed", "", {n: summary(n, v) for n, v in (("a", (0.1,)), ("b", (0.9,)))})
    assert single.difference("a", "b", "f1").tie
    with pytest.raises(InvalidArgumentError, match="method must be one of"):
        view.difference("a", "z", "f1")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["magic"]}, InvalidArgumentError, "methods must be one of .*got 'magic'"),
        ({"methods": "mtl"}, InvalidTypeError, "methods must be a sequence of names; got the string 'mtl'"),
        ({"methods": []}, InvalidArgumentError, "methods must name at least one"),
        ({"views": ["rosy"]}, InvalidArgumentError, "views must be one of .*got 'rosy'"),
        ({"seeds": []}, InvalidArgumentError, "seeds must be different and at least one"),
        ({"seeds": [1, 1]}, InvalidArgumentError, r"seeds must be different.*got \[1, 1\]"),
        ({"seeds": [-1]}, InvalidArgumentError, "seeds must be at least 0; got -1"),
        ({"max_epochs": 2}, InvalidArgumentError, r"max_epochs must be at least config.epochs \(3\); got 2"),
        ({"max_epochs": 0}, InvalidArgumentError, "max_epochs must be at least 1; got 0"),
        ({"num_groups": 9}, InvalidArgumentError, "num_groups must be at most the number of tasks"),
        ({"data": "digits"}, InvalidTypeError, "data must be a TaskData or a function from a seed to one"),
    ],
)
def test_bad_comparisons(options, error, message):
    with pytest.raises(error, match=message):
        compare(**{"data": make, "model": MODEL, "config": CONFIG, **options})


def test_seeds_with_other_tasks():
    one = LAYOUT.select([0])

    def data(seed):
        return make() if seed == 0 else TaskData("other", one, part(30, 0, one), part(30, 1, one))

    with pytest.raises(InvalidArgumentError, match="seed 1 has others"):
        compare(data, MODEL, methods=["mtl"], views=["fixed"], seeds=[0, 1], config=CONFIG)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    data = make()
    result = mtl(MODEL, LAYOUT, data.train, data.test, config=TrainConfig(epochs=1, num_threads=1))
    assert isinstance(result, MethodResult)
    assert torch.get_num_threads() == before


def test_dmtg_in_a_comparison_equals_training_by_hand(comparison):
    data = make(1)
    fixed = comparison.views["fixed"].methods
    trainer = DMTGTrainer(MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=1, device="cpu").fit(data.train)
    assert fixed["dmtg"].results[1].scores == trainer.evaluate(data.test)["dmtg"]
    assert fixed["dmtg"].results[1].parameters == trainer.result_.parameters
    warm = DMTGTrainer(MODEL, LAYOUT, num_groups=2, epochs=2, warm_epochs=3, batch_size=16, seed=1, device="cpu").fit(
        data.train
    )
    assert fixed["dmtg_warm"].results[1].scores == warm.evaluate(data.test)["dmtg"]


def test_dmtg_needs_networks_with_a_backbone():
    seen = []

    def model(layout):
        return torch.nn.Linear(8, layout.num_logits)

    config = TrainConfig(epochs=1, on_epoch_end=lambda *_: seen.append(1))
    with pytest.raises(InvalidTypeError, match=r"model must make a pymtg\.nets\.MultiHeadNet for DMTG.*made a Linear"):
        compare(make, model, config=config, views=("fixed",), progress=False)
    assert seen == []


def test_ablations_of_dmtg():
    options = {"seeds": (0,), "num_groups": 2, "views": ("fixed",), "config": CONFIG, "progress": False}
    found = compare(make, MODEL, methods=("dmtg", *ABLATIONS), dmtg_options={"temperature": 1.0}, **options)
    methods = found.views["fixed"].methods
    assert list(methods) == ["dmtg", "dmtg_diagonal", "dmtg_random"]
    assert found.settings["dmtg_options"] == {"temperature": "1.0"}
    data = make(0)
    diagonal = DMTGTrainer(
        MODEL, LAYOUT, num_groups=2, epochs=3, batch_size=16, seed=0, assignment="diagonal", device="cpu"
    ).fit(data.train)
    assert diagonal.groups_.labels.tolist() == [0, 1, 0, 1]
    assert methods["dmtg_diagonal"].results[0].scores == diagonal.evaluate(data.test)["dmtg"]
    with pytest.raises(InvalidArgumentError, match="dmtg_options must be one of"):
        compare(make, MODEL, dmtg_options={"epochs": 3}, **options)
    with pytest.raises(InvalidArgumentError, match="temperature's start must lie in"):
        compare(make, MODEL, dmtg_options={"temperature": 0.0}, **options)
