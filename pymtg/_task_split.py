"""Which tasks of a layout go through the fused operator, and what the others' losses are."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pymtg._task_losses import COLUMN_LOSSES
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["TaskLossFunction", "TaskSplit", "called", "columns_of", "pick", "split_tasks"]

TaskLossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(outputs [B, ...], targets [B, ...]) -> loss``, a scalar; sees missing targets as they are."""


def called(loss: TaskLossFunction, outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Return what a task's loss function says of it.

    torch's losses per element take outputs ``[B, 1]`` and targets ``[B]`` for ``[B, B]`` pairs and only warn: that
    is an InvalidArgumentError here, found out at the first call with such shapes.
    """
    tried = None if torch.compiler.is_compiling() else _shapes_tried(loss)
    shapes = (outputs.shape[1:], targets.shape[1:])
    if tried is None or shapes in tried:
        return loss(outputs, targets)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size", category=UserWarning)
        try:
            value = loss(outputs, targets)
            tried.add(shapes)
            return value
        except UserWarning as warning:
            if not str(warning).startswith("Using a target size"):
                raise
    raise InvalidArgumentError(
        f"losses of task {name!r} must not pair every row with every other: its outputs are {list(outputs.shape)}, its "
        f"targets {list(targets.shape)}; index the outputs, lambda outputs, targets: loss(outputs[:, 0], targets)"
    )


def _shapes_tried(loss: TaskLossFunction) -> set[Any] | None:
    """Return the shapes of rows that a function was called with: to catch warnings in every step has its price."""
    try:
        return _tried.setdefault(loss, set())
    except TypeError:  # what has no hash or cannot be referred to weakly
        return set()


_tried: weakref.WeakKeyDictionary[TaskLossFunction, set[Any]] = weakref.WeakKeyDictionary()
_CLASSIFICATION = ("cross_entropy", "dense_cross_entropy")


@dataclass(frozen=True)
class TaskSplit:
    """The positions of a layout's tasks by what computes their losses; every task stands in one place.

    Parameters
    ----------
    fused
        Tasks of the fused operator, in the layout's order, and
    fused_layout
        their layout; None where there are none.
    columns
        Per name in ``_task_losses.COLUMN_LOSSES``, the one-column regression tasks with that loss: one call of
        ``column_losses`` for all of them.
    single
        Any other task, with the name of its loss (``_task_losses.row_losses``) or a function.
    """

    fused: tuple[int, ...]
    fused_layout: TaskLayout | None
    columns: Mapping[str, tuple[int, ...]]
    single: Mapping[int, str | TaskLossFunction]


def split_tasks(layout: TaskLayout, losses: Mapping[str, Any] | None = None) -> TaskSplit:
    """Sort the tasks by their losses.

    Parameters
    ----------
    layout
        The tasks.
    losses
        By task name, for tasks that are not to have the default: ``"mse"`` (a regression task's default) or ``"l1"``
        for a regression task; ``"cross_entropy"`` (a classification task's default, fused) or
        ``"dense_cross_entropy"`` for a classification task; or for either a :data:`TaskLossFunction`.

    Raises
    ------
    InvalidArgumentError
        For a task that is not there, or a loss that is unknown or of the other kind of task.
    InvalidTypeError
        If `losses` is not a mapping, or a loss neither a string nor callable.
    """
    chosen = _checked(layout, losses)
    fused = tuple(t for t, loss in enumerate(chosen) if loss == "cross_entropy")
    columns: dict[str, list[int]] = {}
    single: dict[int, str | TaskLossFunction] = {}
    for t, loss in enumerate(chosen):
        if isinstance(loss, str) and loss in COLUMN_LOSSES and layout.num_classes[t] == 1:
            columns.setdefault(loss, []).append(t)
        elif loss != "cross_entropy":
            single[t] = loss
    whole = len(fused) == layout.num_tasks
    fused_layout = (layout if whole else layout.select(fused)) if fused else None
    return TaskSplit(fused, fused_layout, {loss: tuple(tasks) for loss, tasks in columns.items()}, single)


def columns_of(layout: TaskLayout, tasks: Sequence[int]) -> list[int]:
    """Return the columns of the outputs matrix that belong to the tasks, in their order."""
    return [column for t in tasks for column in range(layout.offsets[t], layout.offsets[t + 1])]


def pick(values: Tensor, columns: Sequence[int]) -> Tensor:
    """Return some columns (of the last dimension): a view where they stand side by side, else a copy."""
    first, count = columns[0], len(columns)
    if list(columns) == list(range(first, first + count)):
        return values.narrow(-1, first, count)
    return values[..., list(columns)]


def _checked(layout: TaskLayout, losses: Mapping[str, Any] | None) -> list[Any]:
    chosen: list[Any] = ["mse" if kind == "regression" else "cross_entropy" for kind in layout.kinds]
    if losses is None:
        return chosen
    if not isinstance(losses, Mapping):
        raise InvalidTypeError(f"losses must be a mapping from task names to losses; got {type(losses).__name__}")
    for name, loss in losses.items():
        t = layout.index(name)
        if isinstance(loss, str):
            known = COLUMN_LOSSES if layout.kinds[t] == "regression" else _CLASSIFICATION
            if loss not in known:
                raise InvalidArgumentError(
                    f"losses must be one of {', '.join(map(repr, known))} or a function for the {layout.kinds[t]} "
                    f"task {name!r}; got {loss!r}"
                )
        elif not callable(loss):
            raise InvalidTypeError(f"losses must be names or functions; task {name!r} has {loss!r}")
        chosen[t] = loss
    return chosen
