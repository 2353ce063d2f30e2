"""Outputs of K branches and the targets of a batch, by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pymtg._checks import check_floating, check_tensor
from pymtg._task_losses import class_numbers
from pymtg._task_split import columns_of, pick
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets.branched import HeadOutputs
from pymtg.tasks import TaskLayout

__all__ = ["BranchParts"]


class BranchParts:
    """A batch as :class:`pymtg.branched_loss.BranchedLoss` takes it, checked.

    Raises InvalidArgumentError for shapes or names that do not fit, InvalidTypeError for wrong types.
    """

    def __init__(self, layout: TaskLayout, outputs: Any, targets: Any, ignore_index: int) -> None:
        self.layout, self.targets, self.ignore_index = layout, targets, ignore_index
        if isinstance(outputs, Tensor):
            outputs = HeadOutputs(outputs, {})
        if not isinstance(outputs, HeadOutputs):
            raise InvalidTypeError(f"outputs must be a tensor or HeadOutputs; got {type(outputs).__name__}")
        self.logits, self.others = outputs
        self.linear = _linear_tasks(layout, self.logits, self.others)
        first = self.logits if self.logits is not None else next(iter(self.others.values()))
        self.num_branches, self.num_rows = int(first.shape[0]), int(first.shape[1])
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        """What losses are computed in."""
        self._check_sizes()
        self._check_targets()

    def outputs(self, tasks: Sequence[int]) -> Tensor:
        """Return [K, B, sum of C_t] of tasks whose outputs are columns."""
        names = [self.layout.names[t] for t in tasks]
        if self.logits is not None and self.linear is not None and not any(name in self.others for name in names):
            if len(tasks) == self.linear.num_tasks:
                return self.logits
            return pick(self.logits, columns_of(self.linear, [self.linear.index(name) for name in names]))
        return torch.cat([self._columns(t) for t in tasks], dim=-1)

    def output(self, task: int) -> Tensor:
        """Return the outputs [K, B, ...] of one task."""
        name = self.layout.names[task]
        if name in self.others:
            return self.others[name]
        assert self.logits is not None
        assert self.linear is not None
        return self.logits[..., self.linear.columns(name)]

    def is_column(self, task: int) -> bool:
        """Return whether a task has one number a row, [K, B, 1]."""
        found = self.output(task)
        return found.dim() == 3 and found.shape[2] == 1

    def matrix(self, tasks: Sequence[int]) -> Tensor:
        """Return targets [B, n] of tasks with one target a row."""
        if isinstance(self.targets, Tensor):
            return self.targets if len(tasks) == self.layout.num_tasks else pick(self.targets, tasks)
        return torch.stack([self._column(t) for t in tasks], dim=1)

    def classes(self, tasks: Sequence[int]) -> Tensor:
        """Return class numbers [B, n]; NaN of floating targets becomes `ignore_index`."""
        if isinstance(self.targets, Tensor):
            return class_numbers(self.matrix(tasks), self.ignore_index, [self.layout.names[t] for t in tasks])
        return torch.stack(
            [class_numbers(self._column(t), self.ignore_index, [self.layout.names[t]]) for t in tasks], dim=1
        )

    def target(self, task: int) -> Tensor:
        """Return the target [B, ...] of one task."""
        if isinstance(self.targets, Tensor):
            return self.targets[:, task]
        found: Tensor = self.targets[self.layout.names[task]]
        return found

    def class_map(self, task: int) -> Tensor:
        """Return the target [B, ...] of one task as class numbers."""
        return class_numbers(self.target(task), self.ignore_index, [self.layout.names[task]])

    def _column(self, task: int) -> Tensor:
        found = self.target(task)
        if found.numel() != self.num_rows:
            raise InvalidArgumentError(
                f"targets of task {self.layout.names[task]!r} must be [{self.num_rows}]; got {list(found.shape)}"
            )
        return found.reshape(self.num_rows)

    def _columns(self, task: int) -> Tensor:
        found, classes = self.output(task), self.layout.num_classes[task]
        if found.dim() != 3 or found.shape[2] != classes:
            raise InvalidArgumentError(
                f"outputs of task {self.layout.names[task]!r} must be [K, B, {classes}]; got {list(found.shape)}"
            )
        return found

    def _check_sizes(self) -> None:
        linear = 0 if self.linear is None else self.linear.num_logits
        if self.logits is not None and (self.logits.dim() != 3 or self.logits.shape[2] != linear):
            raise InvalidArgumentError(
                f"outputs must be [K, B, {linear}] for this layout; got {list(self.logits.shape)}"
            )
        if self.num_branches == 0:
            raise InvalidArgumentError("outputs must be of at least one branch; got none")
        for name, found in self.others.items():
            if tuple(found.shape[:2]) != (self.num_branches, self.num_rows):
                raise InvalidArgumentError(
                    f"outputs of task {name!r} must be [{self.num_branches}, {self.num_rows}, ...]; "
                    f"got {list(found.shape)}"
                )

    def _check_targets(self) -> None:
        if isinstance(self.targets, Mapping):
            for name in self.layout:
                self._check_entry(name)
            return
        if not isinstance(self.targets, Tensor):
            raise InvalidTypeError(
                f"targets must be a tensor or tensors by task name; got {type(self.targets).__name__}"
            )
        check_tensor(self.targets, "targets")
        if tuple(self.targets.shape) != (self.num_rows, self.layout.num_tasks):
            raise InvalidArgumentError(
                f"targets must be [{self.num_rows}, {self.layout.num_tasks}]; got {list(self.targets.shape)}"
            )

    def _check_entry(self, name: str) -> None:
        if name not in self.targets:
            raise InvalidArgumentError(f"targets must hold every task of the layout; {name!r} is not there")
        found = self.targets[name]
        check_tensor(found, f"targets of task {name!r}")
        if found.dim() == 0 or len(found) != self.num_rows:
            raise InvalidArgumentError(
                f"targets of task {name!r} must have {self.num_rows} rows; got {list(found.shape)}"
            )


def _linear_tasks(layout: TaskLayout, logits: Any, others: Any) -> TaskLayout | None:
    """Return the tasks whose outputs stand in `logits`; None if there are none."""
    if not isinstance(others, Mapping):
        raise InvalidTypeError(f"outputs' others must be tensors by task name; got {type(others).__name__}")
    for name in others:
        layout.index(name)
    for what, found in (("logits", logits), *((f"task {name!r}", found) for name, found in others.items())):
        if found is None and what == "logits":
            continue
        check_floating(found, f"outputs of {what}")
        if found.dim() < 2:
            raise InvalidArgumentError(f"outputs of {what} must be [K, B, ...]; got {list(found.shape)}")
    rest = [name for name in layout if name not in others]
    if bool(rest) != (logits is not None):
        rule = f"hold the logits of {rest[0]!r}" if rest else "have no logits where every task stands in others"
        raise InvalidArgumentError(f"outputs must {rule}; got {'none' if logits is None else 'some'}")
    if not others:
        return layout
    return layout.select(rest) if rest else None
