"""The layout of the tasks' logits: which columns of the logits matrix belong to which task."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["TaskLayout"]

_Weights = tuple[float, ...] | None

_HANDLES = itertools.count(1)
_LAYOUTS: weakref.WeakValueDictionary[int, TaskLayout] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class TaskLayout:
    """Names, classes and weights of T tasks whose logits stand side by side in one matrix ``[B, num_logits]``.

    Parameters
    ----------
    names
        One unique, non-empty name per task.
    num_classes
        Logits per task: 1 for a binary task with one logit (sigmoid), C >= 2 for a softmax over C classes.
    pos_weight
        Per task, the weight of the positive class of a one-logit task, as in
        :class:`torch.nn.BCEWithLogitsLoss`; ``None`` (all tasks, or one entry) means 1.
    class_weights
        Per task, C_t class weights of a softmax task, as ``weight`` in :class:`torch.nn.CrossEntropyLoss`;
        ``None`` (all tasks, or one entry) means ones. The mean is over the number of rows, *not* over the sum of
        their weights, so that a task's loss does not depend on which rows share its batch.

    Raises
    ------
    InvalidArgumentError
        For no tasks, duplicate or empty names, a class count below 1, or weights of a wrong length, of the wrong
        kind of task, negative or not finite.
    InvalidTypeError
        For names that are not strings or counts that are not integers.

    Examples
    --------
    >>> layout = TaskLayout(["digit", "odd"], [10, 1])
    >>> layout.num_tasks, layout.num_logits, layout.offsets
    (2, 11, (0, 10, 11))
    """

    names: tuple[str, ...]
    num_classes: tuple[int, ...]
    pos_weight: tuple[float | None, ...] | None = None
    class_weights: tuple[_Weights, ...] | None = None
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """T + 1 column numbers: task t owns logits ``offsets[t]:offsets[t + 1]``."""
    handle: int = field(init=False, repr=False, compare=False)
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        names: Sequence[str],
        num_classes: Sequence[int],
        pos_weight: Sequence[float | None] | torch.Tensor | np.ndarray | None = None,
        class_weights: Sequence[Sequence[float] | torch.Tensor | np.ndarray | None] | None = None,
    ) -> None:
        set_field = object.__setattr__  # frozen: the only place where fields are set
        set_field(self, "names", _checked_names(names))
        set_field(self, "num_classes", _checked_counts(num_classes, self.names))
        set_field(self, "pos_weight", _checked_pos_weight(pos_weight, self))
        set_field(self, "class_weights", _checked_class_weights(class_weights, self))
        # Not on first use: torch.compile cannot trace functools.cached_property (it locks in Python 3.11).
        set_field(self, "offsets", tuple(itertools.accumulate(self.num_classes, initial=0)))
        set_field(self, "_positions", {name: t for t, name in enumerate(self.names)})
        # Operators take tensors and numbers only: this number stands for the layout (see with_handle).
        set_field(self, "handle", next(_HANDLES))
        _LAYOUTS[self.handle] = self

    @staticmethod
    def with_handle(handle: int) -> TaskLayout:
        """Return the living layout whose ``handle`` this is; KeyError if it is gone."""
        return _LAYOUTS[handle]

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, also in another process, gets a handle of its own.
        return (TaskLayout, (self.names, self.num_classes, self.pos_weight, self.class_weights))

    @classmethod
    def binary(cls, names: Sequence[str], pos_weight: Sequence[float | None] | None = None) -> TaskLayout:
        """Return a layout of one-logit binary tasks."""
        return cls(names, [1] * len(names), pos_weight=pos_weight)

    @classmethod
    def from_targets(
        cls,
        targets: torch.Tensor | np.ndarray | Sequence[Sequence[int]],
        names: Sequence[str] | None = None,
        *,
        ignore_index: int = -100,
    ) -> TaskLayout:
        """Read the layout off a target array ``[M, T]``.

        A task whose labels are all 0 or 1 becomes a one-logit binary task, any other a softmax over
        ``max(label) + 1`` classes. NaN (in a float array) and `ignore_index` stand for missing labels.

        Raises
        ------
        InvalidArgumentError
            If the array is not 2-D, holds fractions or negative labels, or has a task without any label.
        """
        array = _target_array(targets)
        if array.ndim != 2 or array.shape[1] == 0:
            raise InvalidArgumentError(
                f"targets must be [samples, tasks] with at least one task; got shape {array.shape}"
            )
        if names is None:
            names = [f"task{t}" for t in range(array.shape[1])]
        if len(names) != array.shape[1]:
            raise InvalidArgumentError(
                f"names must have one entry per column of targets ({array.shape[1]}); got {len(names)}"
            )
        return cls(names, [_classes_in(array[:, t], names[t], ignore_index) for t in range(array.shape[1])])

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""
        return len(self.names)

    @property
    def num_logits(self) -> int:
        """Width of the logits matrix, the sum of the class counts."""
        return self.offsets[-1]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def index(self, name: str) -> int:
        """Return the position of the task called `name`; InvalidArgumentError if there is none."""
        try:
            return self._positions[name]
        except KeyError:
            raise InvalidArgumentError(f"no task is named {name!r}; the tasks are {_shortened(self.names)}") from None

    def position(self, task: int | str) -> int:
        """Return the position of a task given by name or position, counted from the end where negative."""
        if isinstance(task, str):
            return self.index(task)
        if isinstance(task, bool) or not isinstance(task, (int, np.integer)):
            raise InvalidTypeError(f"task must be a name or a position; got {task!r}")
        if not -self.num_tasks <= task < self.num_tasks:
            raise InvalidArgumentError(f"task must be a position below {self.num_tasks}; got {task}")
        return int(task) % self.num_tasks

    def columns(self, task: int | str) -> slice:
        """Return the columns of the logits matrix that belong to a task (position or name)."""
        t = self.position(task)
        return slice(self.offsets[t], self.offsets[t + 1])

    def split(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return views ``[B, C_t]`` of the logits, one per task."""
        return torch.split(logits, list(self.num_classes), dim=-1)

    def probabilities(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Return per task ``[B, C_t]`` class probabilities; ``[B, 2]`` for a one-logit task."""
        result = []
        for part in self.split(logits):
            if part.shape[-1] == 1:
                positive = torch.sigmoid(part)
                result.append(torch.cat([1 - positive, positive], dim=-1))
            else:
                result.append(torch.softmax(part, dim=-1))
        return result

    def select(self, tasks: Sequence[int | str]) -> TaskLayout:
        """Return the layout of some of the tasks, in the given order."""
        at = [self.position(task) for task in tasks]
        return TaskLayout(
            [self.names[t] for t in at],
            [self.num_classes[t] for t in at],
            None if self.pos_weight is None else [self.pos_weight[t] for t in at],
            None if self.class_weights is None else [self.class_weights[t] for t in at],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that :meth:`from_dict` reads."""
        return {
            "names": list(self.names),
            "num_classes": list(self.num_classes),
            "pos_weight": None if self.pos_weight is None else list(self.pos_weight),
            "class_weights": None
            if self.class_weights is None
            else [None if w is None else list(w) for w in self.class_weights],
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> TaskLayout:
        """Build a layout from what :meth:`to_dict` returned; InvalidArgumentError if a key is absent."""
        try:
            names, num_classes = description["names"], description["num_classes"]
        except (KeyError, TypeError):
            raise InvalidArgumentError(
                f"a layout's description needs 'names' and 'num_classes'; got {description!r}"
            ) from None
        return cls(names, num_classes, description.get("pos_weight"), description.get("class_weights"))


def _as_tuple(values: Any, what: str) -> tuple[Any, ...]:
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else values
    try:
        return tuple(values)
    except TypeError:
        raise InvalidTypeError(f"{what} must be a sequence; got {values!r}") from None


def _shortened(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidTypeError(f"names must be a sequence of strings; got the string {names!r}")
    names = _as_tuple(names, "names")
    if not names:
        raise InvalidArgumentError("names must hold at least one task; got none")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise InvalidTypeError(f"names must be strings; got {name!r} of type {type(name).__name__}")
        if not name:
            raise InvalidArgumentError("names must not be empty strings")
        if name in seen:
            raise InvalidArgumentError(f"names must be unique; {name!r} stands twice")
        seen.add(name)
    return names


def _checked_counts(num_classes: Sequence[int], names: tuple[str, ...]) -> tuple[int, ...]:
    counts = _as_tuple(num_classes, "num_classes")
    if len(counts) != len(names):
        raise InvalidArgumentError(f"num_classes must have one entry per task ({len(names)}); got {len(counts)}")
    for name, count in zip(names, counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise InvalidTypeError(f"num_classes must be integers; task {name!r} has {count!r}")
        if count < 1:
            raise InvalidArgumentError(f"num_classes must be at least 1; task {name!r} has {count}")
    return tuple(int(count) for count in counts)


def _checked_weight(value: Any, what: str) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{what} must be a number; got {value!r}") from None
    if not math.isfinite(weight) or weight < 0:
        raise InvalidArgumentError(f"{what} must be finite and not negative; got {weight}")
    return weight


def _checked_pos_weight(values: Any, layout: TaskLayout) -> tuple[float | None, ...] | None:
    if values is None:
        return None
    values = _as_tuple(values, "pos_weight")
    if len(values) != layout.num_tasks:
        raise InvalidArgumentError(f"pos_weight must have one entry per task ({layout.num_tasks}); got {len(values)}")
    result: list[float | None] = []
    for name, count, value in zip(layout.names, layout.num_classes, values, strict=True):
        weight = None if value is None else _checked_weight(value, f"pos_weight of task {name!r}")
        if count != 1 and weight not in (None, 1.0):
            raise InvalidArgumentError(
                f"pos_weight belongs to one-logit tasks; task {name!r} has {count} logits (use class_weights)"
            )
        result.append(weight)
    return tuple(result) if any(w not in (None, 1.0) for w in result) else None


def _checked_class_weights(values: Any, layout: TaskLayout) -> tuple[_Weights, ...] | None:
    if values is None:
        return None
    values = _as_tuple(values, "class_weights")
    if len(values) != layout.num_tasks:
        raise InvalidArgumentError(
            f"class_weights must have one entry per task ({layout.num_tasks}); got {len(values)}"
        )
    result: list[_Weights] = []
    for name, count, value in zip(layout.names, layout.num_classes, values, strict=True):
        if value is None:
            result.append(None)
            continue
        weights = _as_tuple(value, f"class_weights of task {name!r}")
        if count == 1:
            raise InvalidArgumentError(
                f"class_weights belong to softmax tasks; task {name!r} has one logit (use pos_weight)"
            )
        if len(weights) != count:
            raise InvalidArgumentError(f"class_weights of task {name!r} must have {count} entries; got {len(weights)}")
        result.append(tuple(_checked_weight(w, f"class_weights of task {name!r}") for w in weights))
    return tuple(result) if any(w is not None for w in result) else None


def _target_array(targets: Any) -> np.ndarray:
    if isinstance(targets, torch.Tensor):
        targets = (targets.double() if targets.is_floating_point() else targets).detach().cpu().numpy()
    try:
        array = np.asarray(targets)
    except ValueError as error:
        raise InvalidArgumentError(f"targets must be [samples, tasks]; {error}") from None
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"targets must be numbers; got dtype {array.dtype}")
    return array


def _classes_in(column: np.ndarray, name: str, ignore_index: int) -> int:
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
    return 1 if highest <= 1 else highest + 1
