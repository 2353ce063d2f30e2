"""R^2 and RMSE against scikit-learn's; Total Error and Normalized Gain against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from _settings import new_seed

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import (
    METRICS,
    REGRESSION_METRICS,
    Scores,
    default_metric,
    metrics_of,
    normalized_gain,
    score,
    total_error,
)

MIXED = TaskLayout(["c3", "x", "bit", "y"], [3, 1, 1, 1], kinds=["classification", "regression"] * 2)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rows", [2, 3, 40, 1001])
def test_against_scikit_learn(rng: np.random.Generator, rows: int, dtype: type) -> None:
    layout = TaskLayout.regression([f"t{i}" for i in range(9)])
    truth = (rng.standard_normal((rows, 9)) * 10.0 ** rng.integers(-3, 4, 9) + rng.standard_normal(9)).astype(dtype)
    predicted = (truth * rng.random(9) + rng.standard_normal((rows, 9))).astype(dtype)
    truth[rng.random(truth.shape) < 0.2] = math.nan
    scores = score(predicted, truth, layout)
    for t, name in enumerate(layout.names):
        known = ~np.isnan(truth[:, t])
        y, p = truth[known, t].astype(float), predicted[known, t].astype(float)
        rmse = sk.root_mean_squared_error(y, p) if len(y) else math.nan
        r2 = sk.r2_score(y, p) if len(y) > 1 else math.nan
        assert scores.tasks[name] == pytest.approx({"r2": r2, "rmse": rmse}, rel=1e-9, nan_ok=True)
    assert list(scores.mean) == list(REGRESSION_METRICS)
    defined = [f["r2"] for f in scores.tasks.values() if not math.isnan(f["r2"])]
    assert scores.defined["r2"] == len(defined)
    assert scores.mean["r2"] == pytest.approx(np.mean(defined) if defined else math.nan, nan_ok=True)


def test_undefined_figures() -> None:
    layout = TaskLayout.regression(["none", "one", "constant", "two"])
    nan = math.nan
    truth = np.array([[nan, 2.0, 0.1, 1.0], [nan, nan, 0.1, 3.0], [nan, nan, 0.1, nan]])
    scores = score(np.full((3, 4), 1.0), truth, layout)
    assert scores.defined == {"r2": 1, "rmse": 3}
    assert scores.tasks["one"]["rmse"] == 1.0
    assert scores.tasks["constant"]["rmse"] == pytest.approx(0.9)
    assert scores.tasks["two"] == pytest.approx({"r2": 1 - 4 / 2, "rmse": math.sqrt(2)})
    assert math.isnan(scores.tasks["constant"]["r2"])
    assert scores.to_dict()["tasks"]["none"] == {"r2": None, "rmse": None}
    assert score(np.zeros((0, 4)), np.zeros((0, 4)), layout).defined == {"r2": 0, "rmse": 0}


def test_both_kinds_together(rng: np.random.Generator) -> None:
    p = np.concatenate(
        [
            rng.dirichlet(np.ones(3), 50),
            rng.standard_normal((50, 1)) * 100,
            rng.random((50, 1)),
            rng.standard_normal((50, 1)),
        ],
        axis=1,
    )
    y = np.stack(
        [rng.integers(3, size=50), *rng.standard_normal((1, 50)), rng.integers(2, size=50), *rng.random((1, 50))], 1
    )
    y[rng.random(y.shape) < 0.2] = math.nan
    y[0, 0] = -100
    scores = score(torch.from_numpy(p), torch.from_numpy(y), MIXED)
    assert list(scores.mean) == [*METRICS, *REGRESSION_METRICS]
    apart = [([0, 2], [0, 1, 2, 4]), ([1, 3], [3, 5])]
    for tasks, columns in apart:
        part = score(p[:, columns], y[:, tasks], MIXED.select(tasks))
        for name in part.tasks:
            assert {m: scores.tasks[name][m] for m in part.mean} == pytest.approx(part.tasks[name])
            assert all(math.isnan(v) for m, v in scores.tasks[name].items() if m not in part.mean)
        assert {m: scores.mean[m] for m in part.mean} == pytest.approx(part.mean)
    # -100 is a number like any other for a regression task
    assert score(np.zeros((2, 1)), np.array([[-100.0], [0]]), TaskLayout.regression(["x"])).mean["rmse"] > 70


def test_metrics_by_kind() -> None:
    assert metrics_of(TaskLayout.binary(["a"])) == METRICS
    assert metrics_of(TaskLayout.regression(["a"])) == REGRESSION_METRICS
    assert metrics_of(MIXED) == METRICS + REGRESSION_METRICS
    assert [default_metric(layout) for layout in (TaskLayout.regression(["a"]), MIXED)] == ["r2", "balanced_accuracy"]


@pytest.mark.parametrize(
    ("p", "y", "layout", "message"),
    [
        ([[math.nan]], [[0.0]], TaskLayout.regression(["x"]), "task 'x' must be finite predictions; row 0 holds nan"),
        ([[0.0]], [[math.inf]], TaskLayout.regression(["x"]), "targets of the regression task 'x'.*row 0 holds inf"),
        ([[0.0] * 2], [[0.0]], TaskLayout(["x"], [2], kinds=["regression"]), "one output each here; 'x' has 2"),
        ([[0.0] * 6], [[0.5, 0, 0, 0]], MIXED, "targets of task 'c3' must be class numbers"),
        ([[2.0, 0, 0, 0, 0, 0]], [[0.0] * 4], MIXED, "row 0 of task 'c3' holds 2.0"),
    ],
)
def test_refused(p: list[list[float]], y: list[list[float]], layout: TaskLayout, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        score(p, y, layout)


def scores_of(**tasks: dict[str, float]) -> Scores:
    return Scores({}, tasks, {})


def test_total_error(rng: np.random.Generator) -> None:
    accuracy = rng.random(5)
    scores = scores_of(**{f"t{i}": {"accuracy": float(a)} for i, a in enumerate(accuracy)})
    error = total_error(scores)
    assert error.total == pytest.approx(100 * np.sum(1 - accuracy))
    assert error.mean == pytest.approx(100 * np.mean(1 - accuracy))
    assert error.tasks["t3"] == pytest.approx(100 * (1 - accuracy[3]))
    assert total_error(scores.to_dict()) == error
    mixed = total_error(scores_of(a={"accuracy": 0.75, "rmse": math.nan}, x={"accuracy": math.nan, "rmse": 2.0}))
    assert (mixed.total, mixed.mean, mixed.defined) == (25.0, 25.0, 1)
    assert (
        json.dumps(mixed.to_dict(), allow_nan=False) == '{"total": 25.0, "mean": 25.0, "tasks": {"a": 25.0, "x": null}}'
    )
    assert math.isnan(total_error(scores_of(x={"rmse": 1.0})).total)
    assert total_error(scores_of(x={"rmse": 1.0})).to_dict()["mean"] is None


def test_normalized_gain(rng: np.random.Generator) -> None:
    layout = TaskLayout.binary([f"t{i}" for i in range(6)])
    y = rng.integers(2, size=(60, 6))
    ours, theirs = (score(rng.random((60, 6)), y, layout) for _ in range(2))
    gain = normalized_gain(ours, theirs)
    e, r = (np.array([1 - s.tasks[n]["accuracy"] for n in layout]) for s in (ours, theirs))
    assert list(gain.tasks.values()) == pytest.approx(list(100 * (r - e) / r))
    assert gain.mean == pytest.approx(np.mean(100 * (r - e) / r))
    assert normalized_gain(ours, json.loads(json.dumps(theirs.to_dict()))) == gain
    assert normalized_gain(ours, ours).mean == 0


def test_normalized_gain_of_rmse_and_where_it_is_undefined() -> None:
    nan = math.nan
    ours = scores_of(x={"rmse": 1.5}, y={"rmse": nan}, a={"accuracy": 0.9}, b={"accuracy": 1.0}, c={"accuracy": 0.7})
    theirs = scores_of(x={"rmse": 2.0}, y={"rmse": 1.0}, a={"accuracy": 1.0}, b={"accuracy": 1.0}, c={"accuracy": 0.4})
    gain = normalized_gain(ours, theirs.to_dict())
    assert gain.tasks == pytest.approx({"x": 25.0, "y": nan, "a": nan, "b": nan, "c": 50.0}, nan_ok=True)
    assert (gain.mean, gain.defined) == (pytest.approx(37.5), 2)


def test_gain_refuses() -> None:
    with pytest.raises(InvalidArgumentError, match="reference must hold every task of scores; it has no 'b'"):
        normalized_gain(scores_of(a={"accuracy": 1}, b={"accuracy": 1}), scores_of(a={"accuracy": 0.5}))
    for wrong in (None, {"mean": {}}, {"tasks": {"a": 0.5}}, 0.5):
        with pytest.raises(InvalidTypeError, match="reference must be Scores, or a dict with 'tasks'"):
            normalized_gain(scores_of(a={"accuracy": 1}), wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidTypeError, match="scores must be Scores"):
            total_error(wrong)  # type: ignore[arg-type]
