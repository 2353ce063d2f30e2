"""The trainers, baselines and comparisons on regression tasks, alone and beside classification tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _settings import new_seed
from torch.utils.data import Dataset

from pymtg import STGTrainer, TaskLayout
from pymtg.data import TaskData, from_arrays
from pymtg.errors import InvalidArgumentError
from pymtg.metrics import METRICS, REGRESSION_METRICS, score
from pymtg.nets import mlp
from pymtg.trainers import METHODS, TrainConfig, compare, mtl, stl
from pymtg.trainers._batches import batch_source
from pymtg.trainers._monitor import monitored
from pymtg.trainers._predict import class_probabilities

REGRESSION = TaskLayout.regression(["x", "y", "z", "w"])
MIXED = TaskLayout(["a", "x", "c", "y"], [1, 1, 3, 1], kinds=["classification", "regression"] * 2)
FAST = {"epochs": 3, "batch_size": 16, "device": "cpu", "num_threads": 1}


def part(layout: TaskLayout, rows: int, seed: int, missing: float = 0.2):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    values = inputs @ torch.randn(5, 4, generator=torch.Generator().manual_seed(99)) / 2
    columns = [
        values[:, t] if kind == "regression" else (torch.sigmoid(values[:, t]) * max(2, count)).floor()
        for t, (kind, count) in enumerate(zip(layout.kinds, layout.num_classes, strict=True))
    ]
    targets = torch.stack(columns, 1).masked_fill(torch.rand(rows, 4, generator=generator) < missing, math.nan)
    return from_arrays(inputs, targets, layout)


def task_data(layout: TaskLayout, seed: int = 0, missing: float = 0.2) -> TaskData:
    return TaskData("toy", layout, *(part(layout, rows, seed + rows, missing) for rows in (60, 40, 30)))


class Loaded(Dataset):
    """The same samples through a DataLoader, in float64."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        inputs, targets = self.data[index]
        return inputs, targets.double()


@pytest.fixture(params=["regression", "mixed"])
def layout(request: pytest.FixtureRequest) -> TaskLayout:
    return {"regression": REGRESSION, "mixed": MIXED}[request.param]


def test_stg(layout: TaskLayout) -> None:
    data = task_data(layout)
    trainer = STGTrainer(mlp(5, (8,)), layout, num_groups=2, progress=False, keep_best=True, **FAST)
    trainer.fit(data.train, data.val)
    assert trainer.data_map_.missing
    assert torch.equal(trainer.data_map_.count, 3 * (~data.train.targets.isnan()).int())
    results = trainer.evaluate(data.test)
    regression = REGRESSION_METRICS if layout is REGRESSION else METRICS + REGRESSION_METRICS
    assert all(tuple(scores.mean) == regression for scores in results.values())
    predicted = trainer.predict_proba(data.test.inputs)
    assert score(predicted, data.test.targets, layout).to_dict() == results["stg_soft"].to_dict()
    weights = torch.from_numpy(np.array(trainer.groups_.memberships))
    parts = torch.stack([net.eval()(data.test.inputs) for net in trainer.models_]).detach()
    x = layout.columns("x").start
    expected = (parts[..., x].T.double() * weights[layout.index("x")]).sum(1)
    torch.testing.assert_close(predicted[:, x].double(), expected)
    values = trainer.predict(data.test.inputs)
    assert values.dtype == torch.float32
    assert torch.equal(values[:, layout.index("x")], predicted[:, x])
    if layout is MIXED:
        assert torch.equal(values[:, 2], predicted[:, layout.columns("c")].argmax(1).float())
        assert torch.equal(values[:, 0], (predicted[:, 0] > 0.5).float())


def test_a_network_learns_what_is_linear() -> None:
    data = task_data(REGRESSION, new_seed() % 10_000, missing=0.0)
    config = TrainConfig(**{**FAST, "epochs": 60, "lr": 0.01})
    result = mtl(mlp(5, (32,)), REGRESSION, data.train, data.test, config=config)
    spread = score(torch.zeros(40, 4), data.test.targets, REGRESSION).mean["rmse"]
    assert result.scores.mean["rmse"] < spread / 2
    assert result.scores.mean["r2"] > 0.7


@pytest.mark.parametrize("source", ["arrays", "loader"])
def test_sources_agree(layout: TaskLayout, source: str) -> None:
    data = task_data(layout)
    train, test = (data.train, data.test) if source == "arrays" else (Loaded(data.train), Loaded(data.test))
    config = TrainConfig(**FAST)
    for run in (mtl, stl):
        expected = run(mlp(5, (8,)), layout, data.train, data.test, config=config)
        found = run(mlp(5, (8,)), layout, train, test, config=config)
        assert found.scores.to_dict() == expected.scores.to_dict()
    plain = mtl(mlp(5, (8,)), layout, (data.train.inputs, data.train.targets.numpy()), data.test, config=config, seed=0)
    again = mtl(mlp(5, (8,)), layout, data.train, data.test, config=config)
    assert plain.scores.to_dict() == again.scores.to_dict()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_classification_task_alone_gets_class_numbers(loaded: bool) -> None:
    data = part(MIXED, 30, 1)
    source = batch_source(Loaded(data) if loaded else data, MIXED, TrainConfig(**FAST), "train")
    assert source.missing
    for tasks, dtype in (([0, 2], torch.int64), ([1], None), ([0, 3], None)):
        found = torch.cat([targets for _, _, targets in source.select(tasks).in_order()])
        assert (found.dtype == dtype) if dtype else found.is_floating_point()
        expected = data.targets[:, tasks]
        expected = expected.nan_to_num(-100) if dtype else expected
        torch.testing.assert_close(found.to(expected.dtype), expected, equal_nan=True)


def test_compare_all_methods(layout: TaskLayout) -> None:
    comparison = compare(
        lambda seed: task_data(layout, seed),
        mlp(5, (8,)),
        seeds=range(2),
        num_groups=2,
        max_epochs=4,
        config=TrainConfig(**FAST),
        progress=False,
    )
    assert comparison.settings["monitor"] == ("r2" if layout is REGRESSION else "balanced_accuracy")
    for view in comparison.views.values():
        assert tuple(view.methods) == METHODS
        for summary in view.methods.values():
            assert all(math.isfinite(summary.metrics[m].mean) for m in summary.metrics)
        means = {name: s.metrics["rmse"].mean for name, s in view.methods.items()}
        assert view.best("rmse") == min(means, key=lambda name: means[name])
        assert view.best("r2") == max(view.methods, key=lambda name: view.methods[name].metrics["r2"].mean)
    lead = "r2" if layout is REGRESSION else "balanced accuracy"
    assert f"| method | {lead} |" in comparison.to_markdown()
    for text in (comparison.to_text("rmse"), comparison.to_markdown("rmse").replace("\\", "")):
        assert text.count(" *") >= len(comparison.views)


# the monitor


def outputs_and_targets(layout: TaskLayout) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(new_seed())
    return torch.randn(40, layout.num_logits, generator=generator), part(layout, 40, 5).targets


def test_monitored_figures(layout: TaskLayout) -> None:
    outputs, targets = outputs_and_targets(layout)
    tasks = score(class_probabilities(outputs, layout), targets, layout).tasks
    rmse = monitored("rmse", outputs, targets, layout)
    assert rmse == pytest.approx([-tasks[name]["rmse"] for name in layout], nan_ok=True)
    own = ["r2" if kind == "regression" else "balanced_accuracy" for kind in layout.kinds]
    expected = [tasks[name][metric] for name, metric in zip(layout, own, strict=True)]
    assert monitored(None, outputs, targets, layout) == pytest.approx(expected)
    targets[:, 1] = math.nan
    losses = monitored("loss", outputs, targets, layout)
    assert math.isnan(losses[1])
    assert losses[3] == pytest.approx(-(rmse[3] ** 2), rel=1e-5)


def test_the_best_epoch_is_that_of_the_lowest_rmse() -> None:
    data = task_data(REGRESSION)
    config = TrainConfig(**{**FAST, "epochs": 12, "lr": 0.05}, keep_best=True, monitor="rmse")
    result = mtl(mlp(5, (8,)), REGRESSION, data.train, data.val, val=data.val, config=config)
    history = [record.val_score for record in result.stages[0].history]
    assert all(value < 0 for value in history)
    assert history[result.stages[0].best_epoch - 1] == max(history)
    assert result.scores.mean["rmse"] == pytest.approx(-max(history))


@pytest.mark.parametrize(
    ("monitor", "layout", "message"),
    [
        ("f1", REGRESSION, "monitor must suit the tasks, which are all of the kind regression; got 'f1'"),
        ("r2", TaskLayout.binary(["a"]), "all of the kind classification; got 'r2'"),
    ],
)
def test_a_monitor_that_no_task_has(monitor: str, layout: TaskLayout, message: str) -> None:
    data = from_arrays(torch.zeros(4, 5), torch.zeros(4, layout.num_tasks), layout)
    with pytest.raises(InvalidArgumentError, match=message):
        mtl(mlp(5, (8,)), layout, data, data, config=TrainConfig(monitor=monitor, **FAST))
