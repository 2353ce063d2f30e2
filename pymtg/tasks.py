"""The layout of the tasks' outputs: which columns of the logits matrix belong to which task."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from pymtg._layout_checks import (
    Weights,
    check_task_order,
    checked_class_weights,
    checked_counts,
    checked_kinds,
    checked_names,
    checked_pos_weight,
    classes_in,
    column_names,
    shortened,
    target_array,
)
from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    import pandas

__all__ = ["TaskLayout"]

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
        Logits per task: 1 for a binary task with one logit (sigmoid), C >= 2 for a softmax over C classes; the number
        of outputs, usually 1, for a regression task.
    pos_weight
        Per task, the weight of the positive class of a one-logit task, as in
        :class:`torch.nn.BCEWithLogitsLoss`; ``None`` (all tasks, or one entry) means 1.
    class_weights
        Per task, C_t class weights of a softmax task, as ``weight`` in :class:`torch.nn.CrossEntropyLoss`;
        ``None`` (all tasks, or one entry) means ones. The mean is over the number of rows, *not* over the sum of
        their weights, so that a task's loss does not depend on which rows share its batch.
    kinds
        Per task ``"classification"`` or ``"regression"``; ``None`` means that all are classification tasks. The
        columns of a regression task are predictions, not logits, and its targets are real numbers, NaN where missing.

    Raises
    ------
    InvalidArgumentError
        For no tasks, duplicate or empty names, a class count below 1, an unknown kind, or weights of a wrong length,
        of the wrong kind of task, negative or not finite.
    InvalidTypeError
        For names that are not strings or counts that are not integers.

    Examples
    --------
    >>> layout = TaskLayout(["digit", "odd"], [10, 1])
    >>> layout.num_tasks, layout.num_logits, layout.offsets
    (2, 11, (0, 10, 11))
    >>> TaskLayout(["digit", "slant"], [10, 1], kinds=["classification", "regression"]).has_regression
    True
    """

    names: tuple[str, ...]
    num_classes: tuple[int, ...]
    pos_weight: tuple[float | None, ...] | None = None
    class_weights: tuple[Weights, ...] | None = None
    kinds: tuple[str, ...] = ()
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """T + 1 column numbers: task t owns logits ``offsets[t]:offsets[t + 1]``."""
    has_regression: bool = field(init=False, repr=False, compare=False)
    """Whether any of the tasks is a regression."""
    handle: int = field(init=False, repr=False, compare=False)
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)
    first_column: ClassVar[int] = 0
    """Where a layout is a part of another, whose targets are the whole's: the column of its first task, for errors."""

    def __init__(
        self,
        names: Iterable[str],
        num_classes: Iterable[int],
        pos_weight: Iterable[float | None] | torch.Tensor | np.ndarray | None = None,
        class_weights: Iterable[Iterable[float] | torch.Tensor | np.ndarray | None] | None = None,
        kinds: Iterable[str] | None = None,
    ) -> None:
        set_field = object.__setattr__  # frozen: the only place where fields are set
        set_field(self, "names", checked_names(names))
        set_field(self, "num_classes", checked_counts(num_classes, self.names))
        set_field(self, "kinds", checked_kinds(kinds, self.names))
        set_field(self, "has_regression", "regression" in self.kinds)
        set_field(self, "pos_weight", checked_pos_weight(pos_weight, self))
        set_field(self, "class_weights", checked_class_weights(class_weights, self))
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
        return (TaskLayout, (self.names, self.num_classes, self.pos_weight, self.class_weights, self.kinds))

    @classmethod
    def binary(cls, names: Iterable[str], pos_weight: Iterable[float | None] | None = None) -> TaskLayout:
        """Return a layout of one-logit binary tasks."""
        names = checked_names(names)
        return cls(names, [1] * len(names), pos_weight=pos_weight)

    @classmethod
    def regression(cls, names: Iterable[str]) -> TaskLayout:
        """Return a layout of regression tasks with one output each."""
        names = checked_names(names)
        return cls(names, [1] * len(names), kinds=["regression"] * len(names))

    @classmethod
    def from_targets(
        cls,
        targets: torch.Tensor | np.ndarray | pandas.DataFrame | Sequence[Sequence[int]],
        names: Iterable[str] | None = None,
        *,
        ignore_index: int = -100,
    ) -> TaskLayout:
        """Read the layout off a target array or data frame ``[M, T]``.

        Tasks without `names` are called by the columns of a data frame, if these are strings, or ``task0``, ``task1``.
        A task whose labels are all 0 or 1 becomes a one-logit binary task, any other a softmax over
        ``max(label) + 1`` classes. NaN (in a float array) and `ignore_index` stand for missing labels, as does what is
        masked (NumPy) or NA (pandas).

        Raises
        ------
        InvalidArgumentError
            If the array is not 2-D, holds fractions, negative labels or some beyond 32 bits, or has a task without any
            label, or if `names` are a data frame's columns in another order.
        """
        array = target_array(targets)
        if array.ndim != 2 or array.shape[1] == 0:
            raise InvalidArgumentError(
                f"targets must be [samples, tasks] with at least one task; got shape {array.shape}"
            )
        if names is None:
            names = column_names(targets) or [f"task{t}" for t in range(array.shape[1])]
        names = checked_names(names)
        if len(names) != array.shape[1]:
            raise InvalidArgumentError(
                f"names must have one entry per column of targets ({array.shape[1]}); got {len(names)}"
            )
        check_task_order(targets, names, "names")
        return cls(names, [classes_in(array[:, t], names[t], ignore_index) for t in range(array.shape[1])])

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
            raise InvalidArgumentError(f"no task is named {name!r}; the tasks are {shortened(self.names)}") from None

    def position(self, task: int | str) -> int:
        """Return the position of a task given by name or position, counted from the end where negative."""
        if isinstance(task, str):
            return self.index(task)
        if isinstance(task, bool) or not isinstance(task, (int, np.integer)):
            raise InvalidTypeError(f"task must be a name or a position; got {task!r}")
        if not -self.num_tasks <= task < self.num_tasks:
            raise InvalidArgumentError(f"task must be a position below {self.num_tasks}; got {task}")
        return int(task) % self.num_tasks

    def by_kind(self) -> dict[str, list[int]]:
        """Return the positions of the tasks of each kind that the layout has."""
        found: dict[str, list[int]] = {}
        for t, kind in enumerate(self.kinds):
            found.setdefault(kind, []).append(t)
        return found

    def columns(self, task: int | str) -> slice:
        """Return the columns of the logits matrix that belong to a task (position or name)."""
        t = self.position(task)
        return slice(self.offsets[t], self.offsets[t + 1])

    def split(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return views ``[B, C_t]`` of the logits, one per task."""
        return torch.split(logits, list(self.num_classes), dim=-1)

    def probabilities(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Return per task ``[B, C_t]`` class probabilities; ``[B, 2]`` for a one-logit task.

        Those of a regression task are its outputs as they are: predictions.
        """
        result = []
        for kind, part in zip(self.kinds, self.split(logits), strict=True):
            if kind == "regression":
                result.append(part)
            elif part.shape[-1] == 1:
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
            [self.kinds[t] for t in at],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that :meth:`from_dict` reads; without kinds where none is a regression."""
        description: dict[str, Any] = {
            "names": list(self.names),
            "num_classes": list(self.num_classes),
            "pos_weight": None if self.pos_weight is None else list(self.pos_weight),
            "class_weights": None
            if self.class_weights is None
            else [None if w is None else list(w) for w in self.class_weights],
        }
        return description | {"kinds": list(self.kinds)} if self.has_regression else description

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> TaskLayout:
        """Build a layout from what :meth:`to_dict` returned; InvalidArgumentError if a key is absent."""
        try:
            names, num_classes = description["names"], description["num_classes"]
        except (KeyError, TypeError):
            raise InvalidArgumentError(
                f"a layout's description needs 'names' and 'num_classes'; got {description!r}"
            ) from None
        weights = description.get("pos_weight"), description.get("class_weights")
        return cls(names, num_classes, *weights, description.get("kinds"))
