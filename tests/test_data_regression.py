"""Regression targets in data sets: Mulan's multi-target form (written here), arrays, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _settings import new_seed

from pymtg import TaskLayout
from pymtg.data import ArrayTasks, TaskData, from_arrays, load, mulan
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError

MIXED = TaskLayout(["c", "x", "b"], [3, 1, 1], kinds=["classification", "regression", "classification"])
NAN = math.nan


@pytest.fixture
def rng() -> np.random.Generator:
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def arff(path: Path, names: list[str], rows: np.ndarray | list[str], kind: str = "numeric") -> None:
    lines = [r if isinstance(r, str) else ",".join("?" if math.isnan(v) else repr(float(v)) for v in r) for r in rows]
    attributes = [f"@attribute {name} {kind if i else 'numeric'}" for i, name in enumerate(names)]
    path.write_text("\n".join(["@relation r", *attributes, "@data", *lines, ""]))


def table(rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.standard_normal((rows, 5)) * [1, 10, 3, 100, 0.01] + [0, 4, 2, -50, 7]
    values[rng.random(rows) < 0.2, 3] = NAN
    return values


def test_masked_whole_numbers_are_missing_regression_targets() -> None:
    ratings = np.ma.masked_array([[0, 4, 1], [2, -1, 0]], mask=[[0, 0, 1], [0, 1, 0]])
    data = from_arrays(np.zeros((2, 1)), ratings, MIXED)
    assert torch.equal(data.targets.nan_to_num(7.5), torch.tensor([[0, 4, 7.5], [2, 7.5, 0]]))


def test_two_files(tmp_path: Path, rng: np.random.Generator) -> None:
    train, test = table(rng, 40), table(rng, 25)
    names = ["f0", "f1", "t0", "t1", "t2"]
    arff(tmp_path / "s-train.arff", names, train)
    arff(tmp_path / "s-test.arff", names, test)
    data = mulan(tmp_path / "s", targets=3)
    assert data.layout == TaskLayout.regression(["t0", "t1", "t2"])
    mean, scale = np.nanmean(train[:, 2:], 0), np.nanstd(train[:, 2:], 0)
    np.testing.assert_allclose(data.target_mean, mean)
    np.testing.assert_allclose(data.target_scale, scale)
    for part, rows in ((data.train, train), (data.test, test)):
        assert part.targets.dtype == torch.float32
        np.testing.assert_allclose(part.targets, (rows[:, 2:] - mean) / scale, rtol=1e-4, atol=1e-5)
        back = part.targets.double().numpy() * np.array(data.target_scale) + np.array(data.target_mean)
        np.testing.assert_allclose(back, rows[:, 2:], rtol=1e-4)
        expected = (rows[:, :2] - train[:, :2].mean(0)) / train[:, :2].std(0)
        np.testing.assert_allclose(part.inputs, expected, rtol=1e-3, atol=1e-4)
    one = mulan(tmp_path / "s", targets=1)
    assert one.layout.names == ("t2",)
    assert one.num_features == 4


def test_one_file_is_split_as_ever(tmp_path: Path, rng: np.random.Generator) -> None:
    values = table(rng, 60)
    arff(tmp_path / "w.arff", list("abcde"), values)
    data = load(f"mulan:{tmp_path}/w", 3, test_size=0.25, val_size=0.2, targets=2)
    assert [len(part) for part in data.parts.values()] == [33, 15, 12]
    known = data.train.targets[~data.train.targets[:, 0].isnan()]
    torch.testing.assert_close(known.mean(0)[:1], torch.zeros(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.targets[:, 1].std(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    again = load(f"mulan:{tmp_path}/w", 3, test_size=0.25, val_size=0.2, targets=2)
    assert torch.equal(again.test.targets.nan_to_num(9), data.test.targets.nan_to_num(9))


def test_constant_and_unknown_targets(tmp_path: Path) -> None:
    rows = np.array([[1.0, 0.1, NAN], [2.0, 0.1, NAN], [4.0, 0.1, NAN]])
    arff(tmp_path / "s-train.arff", list("abc"), rows)
    arff(tmp_path / "s-test.arff", list("abc"), np.array([[1.0, 2.1, 5.0]]))
    data = mulan(tmp_path / "s", targets=2)
    assert data.target_scale == (1.0, 1.0)
    assert data.target_mean == pytest.approx((0.1, 0.0))
    torch.testing.assert_close(data.train.targets[:, 0], torch.zeros(3))
    torch.testing.assert_close(data.test.targets, torch.tensor([[2.0, 5.0]]))


def test_sparse(tmp_path: Path) -> None:
    arff(tmp_path / "s-train.arff", list("abc"), ["{0 2, 2 4}", "{1 3}", "{0 1, 1 1, 2 ?}"])
    arff(tmp_path / "s-test.arff", list("abc"), ["{ }"])
    data = mulan(tmp_path / "s", targets=1)
    torch.testing.assert_close(data.train.targets[:, 0], torch.tensor([1.0, -1.0, NAN]), equal_nan=True)
    assert data.test.targets.item() == -1.0


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (5, FileFormatError, "no feature beside its 5 targets; it has 5 columns"),
        (9, FileFormatError, "no feature beside its 9 targets"),
        (0, InvalidArgumentError, "targets must be at least 1; got 0"),
        (True, InvalidTypeError, "targets must be a number of columns; got True"),
        (2.0, InvalidTypeError, "targets must be a number of columns; got 2.0"),
        (None, InvalidArgumentError, "or give targets, the number of target columns"),
    ],
)
def test_refused(tmp_path: Path, rng: np.random.Generator, targets: Any, error: type, message: str) -> None:
    arff(tmp_path / "s.arff", list("abcde"), table(rng, 9))
    with pytest.raises(error, match=message):
        mulan(tmp_path / "s", targets=targets)


def test_refused_files(tmp_path: Path) -> None:
    arff(tmp_path / "n.arff", list("ab"), ["1,x", "2,y"], kind="{x,y}")
    with pytest.raises(FileFormatError, match="target 'b' must be numeric; it is nominal"):
        mulan(tmp_path / "n", targets=1)
    arff(tmp_path / "i.arff", list("ab"), ["1,1e39", "2,1"])
    with pytest.raises(FileFormatError, match="target 'b' is infinite, or too large for float32, in row 0"):
        mulan(tmp_path / "i", targets=1)
    arff(tmp_path / "d-train.arff", list("abc"), ["1,2,3"] * 3)
    arff(tmp_path / "d-test.arff", list("abz"), ["1,2,3"] * 3)
    with pytest.raises(FileFormatError, match="must declare the same attributes"):
        mulan(tmp_path / "d", targets=1)
    with pytest.raises(InvalidArgumentError, match="targets must be left out for the digits"):
        load("digits", targets=3)


# arrays


def test_arrays_of_both_kinds(rng: np.random.Generator) -> None:
    targets = np.array([[2, 0.5, 1], [NAN, -100.0, 0], [-100, NAN, NAN]])
    data = from_arrays(rng.random((3, 4)), targets, MIXED)
    assert data.targets.dtype == torch.float32
    np.testing.assert_allclose(data.targets, targets)
    integers = from_arrays(rng.random((2, 4)), np.array([[2, 7, 1], [0, -3, 0]]), MIXED)
    assert integers.targets.tolist() == [[2, 7, 1], [0, -3, 0]]
    assert integers.targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0.5, 0, 0]], "classification task 'c' must be class numbers; sample 0 holds 0.5"),
        ([[3.0, 0, 0]], r"targets of task 'c' must lie in 0..2.*sample 0 holds 3"),
        ([[0.0, 0, -1]], "targets of task 'b' must lie in 0..1"),
        ([[0.0, math.inf, 0]], "sample 0 of task 'x' holds infinity"),
        ([[0.0, 0]], r"targets must be \[samples, 3\]"),
    ],
)
def test_arrays_refused(targets: list[list[float]], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        from_arrays([[1.0]], targets, MIXED)


def test_dtypes_must_fit_the_layout() -> None:
    with pytest.raises(InvalidTypeError, match="targets must be floating point, the layout has regression tasks"):
        ArrayTasks(torch.zeros(2, 1), torch.zeros(2, 3).long(), MIXED)
    with pytest.raises(InvalidTypeError, match="targets must be integers"):
        ArrayTasks(torch.zeros(2, 1), torch.zeros(2, 1), TaskLayout.binary(["a"]))


def test_figures_of_task_data_fit_the_tasks() -> None:
    part = from_arrays([[1.0]], [[0.0, 2.0, 1.0]], MIXED)
    with pytest.raises(InvalidArgumentError, match=r"target_scale must have one entry per task \(3\); got 1"):
        TaskData("s", MIXED, part, part, target_mean=(0.0, 0.0, 0.0), target_scale=(1.0,))
