"""Figures against scikit-learn's, and where they are not defined."""

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from _settings import new_seed
from hypothesis import given, settings
from hypothesis import strategies as st

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import METRICS, Scores, score


@pytest.fixture
def rng():
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def draw(rng, layout, rows, *, levels=None, missing=0.0):
    """Probabilities (rounded to `levels` steps, so that there are ties) and labels."""
    parts = []
    for count in layout.num_classes:
        part = rng.random((rows, 1)) if count == 1 else rng.dirichlet(np.ones(count), size=rows)
        parts.append(part if levels is None else np.round(part * levels) / levels)
    targets = np.stack([rng.integers(max(count, 2), size=rows) for count in layout.num_classes], axis=1)
    targets[rng.random(targets.shape) < missing] = -100
    return np.concatenate(parts, axis=1), targets


def by_sklearn(p, y):
    """One task's figures, each by the call that a user would write; NaN where pymtg calls them undefined."""
    known = y != -100
    p, y = p[known], y[known]
    if len(y) == 0:
        return dict.fromkeys(METRICS, math.nan)
    if p.shape[1] == 1:
        p = np.concatenate([1 - p, p], axis=1)
        predicted = (p[:, 1] > 0.5).astype(int)
    else:
        predicted = p.argmax(1)
    result = dict.fromkeys(METRICS, math.nan) | {"accuracy": sk.accuracy_score(y, predicted)}
    classes = np.unique(y)
    if len(classes) < 2:
        return result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remarks on predicted classes that have no label
        result["balanced_accuracy"] = sk.balanced_accuracy_score(y, predicted)
        average = "binary" if p.shape[1] == 2 else "macro"
        result["f1"] = sk.f1_score(y, predicted, average=average)
    of = [1] if p.shape[1] == 2 else classes
    result["roc_auc"] = np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in of])
    result["average_precision"] = np.mean([sk.average_precision_score(y == c, p[:, c]) for c in of])
    return result


def check(p, y, layout):
    scores = score(p, y, layout)
    for t, name in enumerate(layout):
        expected = by_sklearn(p[:, layout.columns(t)], y[:, t])
        assert list(scores.tasks[name]) == list(METRICS)
        for metric in METRICS:
            assert scores.tasks[name][metric] == pytest.approx(expected[metric], rel=1e-12, abs=1e-12, nan_ok=True), (
                name,
                metric,
            )
    for metric in METRICS:
        figures = np.array([scores.tasks[name][metric] for name in layout])
        known = figures[~np.isnan(figures)]
        assert scores.defined[metric] == len(known)
        expected = known.mean() if len(known) else math.nan
        assert scores.mean[metric] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    return scores


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    rows=st.integers(0, 40),
    levels=st.sampled_from([None, 1, 2, 5]),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_every_figure_is_scikit_learns(seed, classes, rows, levels, missing):
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    check(*draw(np.random.default_rng(seed), layout, rows, levels=levels, missing=missing), layout)


def test_multiclass_is_scikit_learns_one_vs_rest(rng):
    layout = TaskLayout(["a"], [4])
    p, y = draw(rng, layout, 200)
    figures = score(p, y, layout).tasks["a"]
    assert figures["roc_auc"] == pytest.approx(sk.roc_auc_score(y[:, 0], p, multi_class="ovr", average="macro"))
    one_hot = np.eye(4)[y[:, 0]]
    assert figures["average_precision"] == pytest.approx(sk.average_precision_score(one_hot, p, average="macro"))


def test_one_logit_and_two_logits_agree(rng):
    p, y = draw(rng, TaskLayout.binary(["a", "b"]), 50, missing=0.2)
    two = np.stack([1 - p, p], axis=2).reshape(50, 4)
    one, other = score(p, y, TaskLayout.binary(["a", "b"])), score(two, y, TaskLayout(["a", "b"], [2, 2]))
    assert one == other


def test_blocks_of_tasks_change_nothing(rng, monkeypatch):
    layout = TaskLayout([f"t{t}" for t in range(23)], rng.integers(1, 4, size=23).tolist())
    p, y = draw(rng, layout, 31, missing=0.1)
    whole = score(p, y, layout)
    monkeypatch.setattr("pymtg.metrics._ENTRIES_AT_ONCE", 70)
    assert score(p, y, layout) == whole


def test_hand_worked_case():
    layout = TaskLayout.binary(["a"])
    scores = score([[0.9], [0.8], [0.3], [0.2], [0.1]], [[1], [0], [1], [0], [0]], layout)
    expected = {
        "accuracy": 3 / 5,
        "balanced_accuracy": (1 / 2 + 2 / 3) / 2,
        "f1": 1 / 2,
        "roc_auc": 5 / 6,
        "average_precision": (1 + 2 / 3) / 2,
    }
    assert scores.mean == pytest.approx(expected)


def test_a_probability_of_one_half_is_class_zero():
    layout = TaskLayout(["a", "b"], [1, 2])
    scores = score([[0.5, 0.5, 0.5]], [[0, 0]], layout)
    assert scores.mean["accuracy"] == 1


def test_undefined_figures_are_nan_left_out_and_none_in_json():
    layout = TaskLayout.binary(["both", "one", "none"])
    p = np.array([[0.2, 0.2, 0.2], [0.9, 0.9, 0.9]])
    scores = score(p, [[0, 1, -100], [1, 1, -100]], layout)
    assert scores.tasks["one"]["accuracy"] == 0.5
    assert math.isnan(scores.tasks["one"]["roc_auc"])
    assert math.isnan(scores.tasks["none"]["accuracy"])
    assert scores.defined == dict.fromkeys(METRICS, 1) | {"accuracy": 2}
    assert scores.mean == {"accuracy": 0.75} | dict.fromkeys(METRICS[1:], 1.0)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert set(plain) == {"mean", "tasks"}
    assert plain["tasks"]["none"] == dict.fromkeys(METRICS)
    nothing = score(p[:0], np.zeros((0, 3)), layout)
    assert nothing.to_dict()["mean"] == dict.fromkeys(METRICS)


def test_labels_that_are_masked_or_na_are_missing(rng):
    pandas = pytest.importorskip("pandas")
    layout = TaskLayout(["a", "b", "x"], [1, 1, 1], kinds=["classification", "classification", "regression"])
    p, y, gone = rng.random((40, 3)), rng.integers(2, size=(40, 3)), rng.random((40, 3)) < 0.3
    y[:2], gone[:2] = [[0] * 3, [1] * 3], False
    wanted = score(p, np.where(gone, np.nan, y), layout).to_dict()
    assert score(p, np.ma.masked_array(y, mask=gone), layout).to_dict() == wanted
    assert score(p, np.ma.masked_array(y.astype(float), mask=gone), layout).to_dict() == wanted
    assert score(p, pandas.DataFrame(y, dtype="Int64").mask(gone), layout).to_dict() == wanted
    with pytest.raises(InvalidArgumentError, match="row 0 of task 'a' holds nan"):
        score(np.ma.masked_array(p, mask=~gone), y, layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target_dtype", [torch.int32, torch.int64, torch.float32])
def test_tensors_of_any_dtype(rng, dtype, target_dtype):
    layout = TaskLayout(["a", "b"], [1, 3])
    p, y = draw(rng, layout, 20, missing=0.2)
    p = torch.tensor(p).to(dtype)
    targets = torch.tensor(y).to(target_dtype)
    if target_dtype.is_floating_point:
        targets[targets == -100] = math.nan
    assert score(p.requires_grad_(), targets, layout) == score(p.detach().double().numpy(), y, layout)


def test_another_ignore_index_and_boolean_labels():
    layout = TaskLayout.binary(["a"])
    p = [[0.9], [0.1], [0.2]]
    assert score(p, [[1], [0], [-1]], layout, ignore_index=-1) == score(p, [[1], [0], [-100]], layout)
    assert score(p, np.array([[True], [False], [False]]), layout).mean["accuracy"] == 1


def test_result_is_frozen():
    scores = score([[0.1]], [[0]], TaskLayout.binary(["a"]))
    assert isinstance(scores, Scores)
    with pytest.raises(AttributeError):
        scores.mean = {}


LAYOUT = TaskLayout(["a", "b"], [1, 3])
P, Y = np.full((2, 4), 0.25), np.zeros((2, 2), dtype=int)


def changed(array, at, value):
    array = array.astype(float)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("p", "y", "layout", "error", "message"),
    [
        (P, Y, ["a"], InvalidTypeError, "layout must be a TaskLayout"),
        (P[:, :3], Y, LAYOUT, InvalidArgumentError, r"probabilities must have shape \[samples, 4\]; got \(2, 3\)"),
        (P[0], Y, LAYOUT, InvalidArgumentError, "probabilities must have shape"),
        (P.astype(str), Y, LAYOUT, InvalidTypeError, "probabilities must hold real numbers"),
        (changed(P, (1, 2), np.nan), Y, LAYOUT, InvalidArgumentError, "row 1 of task 'b' holds nan"),
        (changed(P, (1, 0), 1.5), Y, LAYOUT, InvalidArgumentError, "row 1 of task 'a' holds 1.5"),
        (changed(P, (0, 3), -2), Y, LAYOUT, InvalidArgumentError, "row 0 of task 'b' holds -2"),
        (P, Y[:, 0], LAYOUT, InvalidArgumentError, r"targets must have shape \[samples, 2\]"),
        (P, Y[:1], LAYOUT, InvalidArgumentError, r"as many rows as probabilities \(2\); got 1"),
        (P, changed(Y, (1, 1), 3), LAYOUT, InvalidArgumentError, r"task 'b' must be class numbers in 0\.\.2.*row 1"),
        (P, changed(Y, (0, 0), 2), LAYOUT, InvalidArgumentError, r"task 'a' must be class numbers in 0\.\.1"),
        (P, changed(Y, (0, 0), -1), LAYOUT, InvalidArgumentError, "row 0 holds -1"),
        (P, changed(Y, (0, 0), 0.5), LAYOUT, InvalidArgumentError, "row 0 holds 0.5"),
        (P, changed(Y, (0, 0), np.inf), LAYOUT, InvalidArgumentError, "row 0 holds inf"),
        (P, Y.astype(complex), LAYOUT, InvalidTypeError, "targets must hold real numbers"),
    ],
)
def test_bad_input(p, y, layout, error, message):
    with pytest.raises(error, match=message):
        score(p, y, layout)
