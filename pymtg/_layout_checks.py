"""What a layout and the targets it is read off may hold; the checks of :class:`pymtg.TaskLayout`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from pymtg.tasks import TaskLayout

KINDS = ("classification", "regression")
Weights = tuple[float, ...] | None
MOST_CLASSES = 2**31 - 1  # labels are 32 bits wide in the kernels


def _as_tuple(values: Any, what: str) -> tuple[Any, ...]:
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else values
    try:
        return tuple(values)
    except TypeError:
        raise InvalidTypeError(f"{what} must be a sequence; got {values!r}") from None


def shortened(names: Sequence[str], most: int = 6) -> str:
    """Return the first names, quoted, and how many there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def checked_names(names: Iterable[str], what: str = "names") -> tuple[str, ...]:
    """Return the names as a tuple; typed errors unless they are unique, non-empty strings."""
    if isinstance(names, str):
        raise InvalidTypeError(f"{what} must be a sequence of strings; got the string {names!r}")
    names = _as_tuple(names, what)
    if not names:
        raise InvalidArgumentError(f"{what} must hold at least one task; got none")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise InvalidTypeError(f"{what} must be strings; got {name!r} of type {type(name).__name__}")
        if not name:
            raise InvalidArgumentError(f"{what} must not be empty strings")
        if name in seen:
            raise InvalidArgumentError(f"{what} must be unique; {name!r} stands twice")
        seen.add(name)
    return names


def checked_counts(num_classes: Iterable[int], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the class counts as a tuple of T integers from 1."""
    counts = _as_tuple(num_classes, "num_classes")
    if len(counts) != len(names):
        raise InvalidArgumentError(f"num_classes must have one entry per task ({len(names)}); got {len(counts)}")
    for name, count in zip(names, counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise InvalidTypeError(f"num_classes must be integers; task {name!r} has {count!r}")
        if count < 1:
            raise InvalidArgumentError(f"num_classes must be at least 1; task {name!r} has {count}")
        if count > MOST_CLASSES:
            raise InvalidArgumentError(f"num_classes must be at most {MOST_CLASSES}; task {name!r} has {count}")
    return tuple(int(count) for count in counts)


def checked_kinds(kinds: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return T kinds; all classification where none are given."""
    if kinds is None:
        return (KINDS[0],) * len(names)
    if isinstance(kinds, str):
        raise InvalidTypeError(f"kinds must be a sequence of strings; got the string {kinds!r}")
    kinds = _as_tuple(kinds, "kinds")
    if len(kinds) != len(names):
        raise InvalidArgumentError(f"kinds must have one entry per task ({len(names)}); got {len(kinds)}")
    for name, kind in zip(names, kinds, strict=True):
        if kind not in KINDS:
            raise InvalidArgumentError(f"kinds must be 'classification' or 'regression'; task {name!r} has {kind!r}")
    return tuple(map(str, kinds))


def _checked_weight(value: Any, what: str) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{what} must be a number; got {value!r}") from None
    if not math.isfinite(weight) or weight < 0:
        raise InvalidArgumentError(f"{what} must be finite and not negative; got {weight}")
    return weight


def checked_pos_weight(values: Any, layout: TaskLayout) -> tuple[float | None, ...] | None:
    """Return T positive-class weights, None where every one of them is 1."""
    if values is None:
        return None
    values = _as_tuple(values, "pos_weight")
    if len(values) != layout.num_tasks:
        raise InvalidArgumentError(f"pos_weight must have one entry per task ({layout.num_tasks}); got {len(values)}")
    result: list[float | None] = []
    for name, count, kind, value in zip(layout.names, layout.num_classes, layout.kinds, values, strict=True):
        weight = None if value is None else _checked_weight(value, f"pos_weight of task {name!r}")
        if kind == "regression" and weight not in (None, 1.0):
            raise _not_for_regression("pos_weight", name)
        if count != 1 and weight not in (None, 1.0):
            raise InvalidArgumentError(
                f"pos_weight belongs to one-logit tasks; task {name!r} has {count} logits (use class_weights)"
            )
        result.append(weight)
    return tuple(result) if any(w not in (None, 1.0) for w in result) else None


def checked_class_weights(values: Any, layout: TaskLayout) -> tuple[Weights, ...] | None:
    """Return class weights per softmax task, None where there are none."""
    if values is None:
        return None
    values = _as_tuple(values, "class_weights")
    if len(values) != layout.num_tasks:
        raise InvalidArgumentError(
            f"class_weights must have one entry per task ({layout.num_tasks}); got {len(values)}"
        )
    result: list[Weights] = []
    for name, count, kind, value in zip(layout.names, layout.num_classes, layout.kinds, values, strict=True):
        if value is None:
            result.append(None)
            continue
        if kind == "regression":
            raise _not_for_regression("class_weights", name)
        weights = _as_tuple(value, f"class_weights of task {name!r}")
        if count == 1:
            raise InvalidArgumentError(
                f"class_weights belong to softmax tasks; task {name!r} has one logit (use pos_weight)"
            )
        if len(weights) != count:
            raise InvalidArgumentError(f"class_weights of task {name!r} must have {count} entries; got {len(weights)}")
        result.append(tuple(_checked_weight(w, f"class_weights of task {name!r}") for w in weights))
    return tuple(result) if any(w is not None for w in result) else None


def _not_for_regression(argument: str, name: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{argument} must be of classification tasks only; task {name!r} is a regression")


def column_names(values: Any) -> tuple[str, ...] | None:
    """Return the names of a data frame's columns; None of anything else, and where one is no string."""
    names = tuple(getattr(values, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def check_task_order(frame: Any, names: tuple[str, ...], whose: str = "the layout", argument: str = "targets") -> None:
    """Raise InvalidArgumentError for a data frame with the tasks for its columns, but in another order."""
    columns = column_names(frame)
    if columns is None or columns == names or sorted(columns) != sorted(names):
        return
    task = next(t for t, name in enumerate(names) if columns[t] != name)
    raise InvalidArgumentError(
        f"{argument} must have the tasks as columns in the order of {whose}; column {task} is {columns[task]!r}, "
        f"where {whose} has {names[task]!r}"
    )


def missing_as_nan(values: Any) -> Any:
    """Return what has masked numbers (NumPy), or columns of numbers that may hold NA (pandas), as a floating array.

    NaN stands for what is missing; np.asarray would read a number where one is masked. Anything else stays as it is.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values) and values.dtype.kind in "biuf":
        dtype = values.dtype if values.dtype.kind == "f" else np.float64
        return np.ma.asarray(values, dtype=dtype).filled(np.nan)
    if hasattr(values, "isna") and np.asarray(values).dtype.kind == "O":
        columns = np.atleast_1d(np.asarray(values.dtypes, dtype=object))
        if all(dtype.kind in "biuf" for dtype in columns):
            return values.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def target_array(targets: Any) -> np.ndarray:
    """Return targets as an array of numbers."""
    if isinstance(targets, torch.Tensor):
        targets = (targets.double() if targets.is_floating_point() else targets).detach().cpu().numpy()
    try:
        array = np.asarray(missing_as_nan(targets))
    except ValueError as error:
        raise InvalidArgumentError(f"targets must be [samples, tasks]; {error}") from None
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"targets must be numbers; got dtype {array.dtype}")
    return array


def classes_in(column: np.ndarray, name: str, ignore_index: int) -> int:
    """Return the logits that a column of labels needs."""
    known = column[column != ignore_index]
    if column.dtype.kind == "f":
        known = known[~np.isnan(known)]
        if np.any(known != np.floor(known)) or np.any(np.isinf(known)):
            raise InvalidArgumentError(f"targets must be class numbers; task {name!r} holds fractions or infinities")
    if known.size == 0:
        raise InvalidArgumentError(
            f"targets of task {name!r} are all missing; give its class count to TaskLayout instead"
        )
    if known.min() < 0:
        raise InvalidArgumentError(f"targets must not be negative; task {name!r} holds {known.min()}")
    highest = int(known.max())
    if highest >= MOST_CLASSES:
        raise InvalidArgumentError(
            f"targets must be class numbers below {MOST_CLASSES}; task {name!r} holds {known.max()}"
        )
    return 1 if highest <= 1 else highest + 1
