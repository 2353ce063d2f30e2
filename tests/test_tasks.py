from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError

LAYOUT = TaskLayout(
    ["digit", "odd", "loop"], [10, 1, 2], pos_weight=[None, 3.0, None], class_weights=[range(10), None, [1, 2]]
)


def test_fields() -> None:
    assert LAYOUT.names == ("digit", "odd", "loop")
    assert LAYOUT.num_classes == (10, 1, 2)
    assert LAYOUT.pos_weight == (None, 3.0, None)
    assert LAYOUT.class_weights == (tuple(float(w) for w in range(10)), None, (1.0, 2.0))
    assert LAYOUT.offsets == (0, 10, 11, 13)
    assert (LAYOUT.num_tasks, LAYOUT.num_logits, len(LAYOUT), list(LAYOUT)) == (3, 13, 3, list(LAYOUT.names))
    assert "handle" not in repr(LAYOUT)
    assert eval(repr(LAYOUT)) == LAYOUT


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "numpy", "torch"])
def test_sequences_of_any_kind(kind: Any) -> None:
    layout = TaskLayout(("a", "b"), kind([1, 2]), kind([2.0, 1.0]), [None, kind([0.5, 0.25])])
    assert layout.pos_weight == (2.0, 1.0)
    assert layout.num_classes == (1, 2)
    assert layout.class_weights == (None, (0.5, 0.25))


@pytest.mark.parametrize(
    "kind", [iter, lambda names: (name for name in names), dict.fromkeys, lambda names: map(str, names), np.array]
)
def test_any_iterable_of_names_will_do(kind: Any) -> None:
    names, targets = ["a", "b", "c"], np.eye(3, dtype=int)
    assert TaskLayout(kind(names), iter([1, 1, 1])) == TaskLayout.binary(names)
    assert TaskLayout.binary(kind(names), iter([2.0, None, 1.0])) == TaskLayout.binary(names, [2.0, None, 1.0])
    assert TaskLayout.regression(kind(names)) == TaskLayout.regression(names)
    assert TaskLayout.from_targets(targets, kind(names)) == TaskLayout.binary(names)
    for constructor in (TaskLayout.binary, TaskLayout.regression):
        with pytest.raises(InvalidTypeError, match="names must be a sequence of strings; got the string 'abc'"):
            constructor("abc")
        with pytest.raises(InvalidTypeError, match="names must be a sequence; got 3"):
            constructor(3)  # type: ignore[arg-type]


def test_weights_of_one_are_none() -> None:
    assert TaskLayout.binary(["a", "b"], [1.0, None]).pos_weight is None
    assert TaskLayout(["a"], [3], class_weights=[None]).class_weights is None


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LAYOUT.names = ("x",)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del LAYOUT.num_classes  # type: ignore[misc]


def test_equality_and_hash() -> None:
    same = TaskLayout.from_dict(LAYOUT.to_dict())
    assert same == LAYOUT
    assert hash(same) == hash(LAYOUT)
    assert same.handle != LAYOUT.handle
    assert len({same, LAYOUT}) == 1
    others = [
        TaskLayout(["x", "odd", "loop"], [10, 1, 2], LAYOUT.pos_weight, LAYOUT.class_weights),
        TaskLayout(LAYOUT.names, [10, 1, 2], None, LAYOUT.class_weights),
        TaskLayout(LAYOUT.names, [10, 1, 2], LAYOUT.pos_weight),
        TaskLayout(LAYOUT.names, [10, 1, 3], LAYOUT.pos_weight),
    ]
    assert all(other != LAYOUT for other in others)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda layout: pickle.loads(pickle.dumps(layout)), dataclasses.replace],
    ids=["copy", "deepcopy", "pickle", "replace"],
)
def test_copies(copied: Any) -> None:
    other = copied(LAYOUT)
    assert other == LAYOUT
    assert other.offsets == LAYOUT.offsets
    assert other.handle != LAYOUT.handle
    assert TaskLayout.with_handle(other.handle) is other


def test_handles_are_never_reused() -> None:
    layout = TaskLayout.binary(["a"])
    handle = layout.handle
    del layout
    gc.collect()
    with pytest.raises(KeyError):
        TaskLayout.with_handle(handle)
    assert TaskLayout.binary(["a"]).handle != handle


def test_columns_and_split() -> None:
    logits = torch.randn(4, 13)
    parts = LAYOUT.split(logits)
    assert [part.shape[1] for part in parts] == [10, 1, 2]
    for t, name in enumerate(LAYOUT.names):
        assert LAYOUT.columns(name) == LAYOUT.columns(t) == LAYOUT.columns(t - 3)
        assert torch.equal(logits[:, LAYOUT.columns(name)], parts[t])
        assert parts[t].untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()


def test_probabilities() -> None:
    logits = torch.randn(4, 13, dtype=torch.float64)
    digit, odd, loop = LAYOUT.probabilities(logits)
    torch.testing.assert_close(digit, logits[:, :10].softmax(1))
    torch.testing.assert_close(odd, torch.stack([(-logits[:, 10]).sigmoid(), logits[:, 10].sigmoid()], 1))
    torch.testing.assert_close(loop, logits[:, 11:].softmax(1))


def test_select() -> None:
    chosen = LAYOUT.select(["loop", 0, -2])
    assert chosen.names == ("loop", "digit", "odd")
    assert chosen.num_classes == (2, 10, 1)
    assert chosen.pos_weight == (None, None, 3.0)
    assert chosen.class_weights is not None
    assert chosen.class_weights[0] == (1.0, 2.0)
    assert LAYOUT.select(range(3)) == LAYOUT


def test_to_and_from_dict() -> None:
    for layout in (LAYOUT, TaskLayout.binary(["a", "ü"])):
        assert TaskLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    for description in ({}, {"names": ["a"]}, None, 3):
        with pytest.raises(InvalidArgumentError, match="'names' and 'num_classes'"):
            TaskLayout.from_dict(description)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [-100, -1, 7])
def test_from_targets(missing: int) -> None:
    targets = torch.tensor([[0, 2, 1, 0], [1, missing, 1, 0], [missing, 0, 1, 4]])
    for given in (targets, targets.int(), targets.numpy(), targets.tolist(), targets.bfloat16(), targets.double()):
        layout = TaskLayout.from_targets(given, ignore_index=missing)
        assert layout.names == ("task0", "task1", "task2", "task3")
        assert layout.num_classes == (1, 3, 1, 5)
    assert TaskLayout.from_targets(targets, list("abcd"), ignore_index=missing).names == tuple("abcd")


def test_from_targets_other_kinds() -> None:
    assert TaskLayout.from_targets(torch.tensor([[True, False]])).num_classes == (1, 1)
    assert TaskLayout.from_targets(np.array([[0, 255]], dtype=np.uint8)).num_classes == (1, 256)
    assert TaskLayout.from_targets([[0.0, np.nan], [np.nan, 2.0]]).num_classes == (1, 3)
    assert TaskLayout.from_targets([[0.0, np.nan], [-100, 2.0]]).num_classes == (1, 3)


def test_from_targets_of_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0, 1, 0], "b": [2, 0, 1]})
    assert TaskLayout.from_targets(frame) == TaskLayout(["a", "b"], [1, 3])
    assert TaskLayout.from_targets(frame, ["x", "y"]).names == ("x", "y")
    assert TaskLayout.from_targets(frame.set_axis([3, "b"], axis=1)).names == ("task0", "task1")
    frame = frame.astype({"a": "boolean", "b": "Int64"})
    frame.iloc[0] = pandas.NA
    assert TaskLayout.from_targets(frame) == TaskLayout(["a", "b"], [1, 1])


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1"])
def test_from_targets_does_not_read_what_is_masked(dtype: str) -> None:
    targets = np.ma.masked_array(np.array([[0, 9], [1, 2], [9, 0]], dtype=dtype), mask=[[0, 1], [0, 0], [1, 0]])
    assert TaskLayout.from_targets(targets).num_classes == (1, 3)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 1], InvalidArgumentError, r"targets must be \[samples, tasks\].*got shape \(2,\)"),
        (np.zeros((3, 0)), InvalidArgumentError, "at least one task"),
        ([[0, 1], [0]], InvalidArgumentError, r"targets must be \[samples, tasks\]"),
        ([["a"]], InvalidTypeError, "targets must be numbers; got dtype"),
        ([[0.5]], InvalidArgumentError, "class numbers; task 'task0' holds fractions"),
        ([[np.inf]], InvalidArgumentError, "class numbers; task 'task0'"),
        ([[-2]], InvalidArgumentError, "targets must not be negative; task 'task0' holds -2"),
        ([[10**12]], InvalidArgumentError, "class numbers below 2147483647; task 'task0' holds 1000000000000"),
        ([[2**31 - 1]], InvalidArgumentError, "class numbers below 2147483647; task 'task0' holds 2147483647"),
        ([[1e300]], InvalidArgumentError, r"class numbers below 2147483647; task 'task0' holds 1e\+300"),
        (np.array([[2**63]], dtype=np.uint64), InvalidArgumentError, "task 'task0' holds 9223372036854775808"),
        ([[-100], [-100]], InvalidArgumentError, "targets of task 'task0' are all missing"),
        (np.zeros((0, 2)), InvalidArgumentError, "all missing"),
    ],
)
def test_from_targets_refuses(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskLayout.from_targets(targets)


def test_from_targets_refuses_too_few_names() -> None:
    with pytest.raises(InvalidArgumentError, match=r"one entry per column of targets \(2\); got 1"):
        TaskLayout.from_targets([[0, 1]], ["a"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], []), InvalidArgumentError, "names must hold at least one task"),
        (("ab", [1, 1]), InvalidTypeError, "names must be a sequence of strings; got the string 'ab'"),
        ((5, [1]), InvalidTypeError, "names must be a sequence; got 5"),
        ((["a", 3], [1, 1]), InvalidTypeError, "names must be strings; got 3 of type int"),
        ((["a", ""], [1, 1]), InvalidArgumentError, "names must not be empty"),
        ((["a", "b", "a"], [1, 1, 1]), InvalidArgumentError, "names must be unique; 'a' stands twice"),
        ((["a", "b"], [1]), InvalidArgumentError, r"num_classes must have one entry per task \(2\); got 1"),
        ((["a"], 3), InvalidTypeError, "num_classes must be a sequence; got 3"),
        ((["a"], [0]), InvalidArgumentError, "num_classes must be at least 1; task 'a' has 0"),
        ((["a"], [2**31]), InvalidArgumentError, "num_classes must be at most 2147483647; task 'a' has 2147483648"),
        ((["a"], [-3]), InvalidArgumentError, "task 'a' has -3"),
        ((["a"], [2.0]), InvalidTypeError, "num_classes must be integers; task 'a' has 2.0"),
        ((["a"], [True]), InvalidTypeError, "num_classes must be integers; task 'a' has True"),
        ((["a"], [1], [1.0, 2.0]), InvalidArgumentError, r"pos_weight must have one entry per task \(1\); got 2"),
        ((["a"], [1], 3.0), InvalidTypeError, "pos_weight must be a sequence; got 3.0"),
        ((["a"], [1], ["x"]), InvalidTypeError, "pos_weight of task 'a' must be a number; got 'x'"),
        ((["a"], [2], ["x"]), InvalidTypeError, "pos_weight of task 'a' must be a number; got 'x'"),
        ((["a"], [1], [-1.0]), InvalidArgumentError, "finite and not negative; got -1.0"),
        ((["a"], [1], [float("nan")]), InvalidArgumentError, "finite and not negative; got nan"),
        ((["a"], [2], [2.0]), InvalidArgumentError, "one-logit tasks; task 'a' has 2 logits"),
        ((["a"], [2], None, []), InvalidArgumentError, r"class_weights must have one entry per task \(1\); got 0"),
        ((["a"], [2], None, [3.0]), InvalidTypeError, "class_weights of task 'a' must be a sequence; got 3.0"),
        ((["a"], [2], None, [[1.0]]), InvalidArgumentError, "class_weights of task 'a' must have 2 entries; got 1"),
        ((["a"], [2], None, [[1.0, np.inf]]), InvalidArgumentError, "finite and not negative; got inf"),
        ((["a"], [1], None, [[1.0]]), InvalidArgumentError, "softmax tasks; task 'a' has one logit"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskLayout(*arguments)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("dgit", InvalidArgumentError, "no task is named 'dgit'; the tasks are 'digit', 'odd', 'loop'"),
        (3, InvalidArgumentError, "task must be a position below 3; got 3"),
        (-4, InvalidArgumentError, "task must be a position below 3; got -4"),
        (1.0, InvalidTypeError, "task must be a name or a position; got 1.0"),
    ],
)
def test_unknown_task(task: Any, error: type[Exception], message: str) -> None:
    for look_up in (LAYOUT.columns, lambda task: LAYOUT.select([task])):
        with pytest.raises(error, match=message):
            look_up(task)


MIXED = TaskLayout(
    ["digit", "slant", "odd", "box"],
    [10, 1, 1, 4],
    pos_weight=[None, None, 3.0, None],
    kinds=["classification", "regression", "classification", "regression"],
)


def test_kinds() -> None:
    assert LAYOUT.kinds == ("classification",) * 3
    assert not LAYOUT.has_regression
    assert MIXED.has_regression
    assert "kinds" not in LAYOUT.to_dict()
    assert TaskLayout(LAYOUT.names, LAYOUT.num_classes, kinds=LAYOUT.kinds) == TaskLayout(
        LAYOUT.names, LAYOUT.num_classes
    )
    assert TaskLayout.regression(["a", "b"]) == TaskLayout(("a", "b"), (1, 1), kinds=["regression"] * 2)
    assert TaskLayout.regression(["a", "b"]) != TaskLayout.binary(["a", "b"])
    assert eval(repr(MIXED)) == MIXED
    assert MIXED.by_kind() == {"classification": [0, 2], "regression": [1, 3]}
    assert LAYOUT.by_kind() == {"classification": [0, 1, 2]}


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        dataclasses.replace,
        lambda layout: pickle.loads(pickle.dumps(layout)),
        lambda layout: TaskLayout.from_dict(json.loads(json.dumps(layout.to_dict()))),
        lambda layout: layout.select(range(4)),
    ],
    ids=["deepcopy", "replace", "pickle", "dict", "select"],
)
def test_kinds_are_copied(copied: Any) -> None:
    assert copied(MIXED) == MIXED
    assert copied(MIXED).kinds == ("classification", "regression", "classification", "regression")


def test_kinds_are_selected() -> None:
    assert MIXED.select(["box", "odd"]).kinds == ("regression", "classification")
    assert not MIXED.select([0, 2]).has_regression


def test_probabilities_of_a_regression_task_are_its_outputs() -> None:
    outputs = torch.randn(5, 16, dtype=torch.float64)
    digit, slant, odd, box = MIXED.probabilities(outputs)
    assert torch.equal(slant, outputs[:, 10:11])
    assert torch.equal(box, outputs[:, 12:])
    torch.testing.assert_close(digit.sum(1), torch.ones(5, dtype=torch.float64))
    assert odd.shape == (5, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": ["regression"]}, InvalidArgumentError, r"kinds must have one entry per task \(2\); got 1"),
        ({"kinds": "regression"}, InvalidTypeError, "sequence of strings; got the string 'regression'"),
        ({"kinds": 3}, InvalidTypeError, "kinds must be a sequence; got 3"),
        ({"kinds": ["regression", "ranking"]}, InvalidArgumentError, "task 'b' has 'ranking'"),
        ({"kinds": ["regression", None]}, InvalidArgumentError, "task 'b' has None"),
        (
            {"kinds": ["regression", "classification"], "pos_weight": [2.0, None]},
            InvalidArgumentError,
            "pos_weight must be of classification tasks only; task 'a' is a regression",
        ),
        (
            {"kinds": ["classification", "regression"], "class_weights": [None, [1, 2, 3]]},
            InvalidArgumentError,
            "class_weights must be of classification tasks only; task 'b' is a regression",
        ),
    ],
)
def test_kinds_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskLayout(["a", "b"], [1, 3], **options)
