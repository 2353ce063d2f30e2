"""The loss of a network of K branches with a head for every task, under an assignment of tasks to branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pymtg._task_losses import column_losses, row_losses
from pymtg._task_split import TaskLossFunction, columns_of, pick, split_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.functional import assigned_cross_entropy
from pymtg.nets.branched import HeadOutputs
from pymtg.tasks import TaskLayout

__all__ = ["BranchedLoss"]


class BranchedLoss(nn.Module):
    """``sum_tk Z_tk loss_tk``, the objective of DMTG without its entropy term.

    Classification tasks go through the fused operator, all K x T heads in one call; regression tasks and those with a
    loss of their own stand in the same sum.

    Parameters
    ----------
    layout
        The T tasks.
    losses
        By task name, where it is not the default: ``"mse"`` (default) or ``"l1"`` of a regression task,
        ``"cross_entropy"`` (default) or ``"dense_cross_entropy"`` (outputs [B, C, H, W], targets [B, H, W]) of a
        classification task, or a function ``(outputs [B, ...], targets [B, ...]) -> scalar`` of either. The named ones
        leave missing targets out (NaN, or `ignore_index` of class numbers); a function sees them as they are.
    ignore_index
        The label that stands for "missing".
    backend
        As in :func:`pymtg.functional.assigned_cross_entropy`.

    Attributes
    ----------
    task_losses : Tensor or None
        [T, K] unweighted losses of the last call, detached.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For a layout or losses that are none.

    Examples
    --------
    >>> layout = TaskLayout.binary(["odd", "even"])
    >>> loss = BranchedLoss(layout)
    >>> assignment = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    >>> loss(torch.zeros(2, 4, 2), torch.ones(4, 2, dtype=torch.long), assignment)
    tensor(1.3863)
    """

    def __init__(
        self,
        layout: TaskLayout,
        losses: Mapping[str, str | TaskLossFunction] | None = None,
        *,
        ignore_index: int = -100,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layout, TaskLayout):
            raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
        self.layout = layout
        self.split = split_tasks(layout, losses)
        self.ignore_index = ignore_index
        self.backend = backend
        self.task_losses: Tensor | None = None

    def forward(
        self, outputs: Tensor | HeadOutputs, targets: Tensor | Mapping[str, Tensor], assignment: Tensor
    ) -> Tensor:
        """Return the scalar sum, differentiable in outputs and assignment.

        Parameters
        ----------
        outputs
            [K, B, C] or :class:`pymtg.nets.HeadOutputs`, as :class:`pymtg.nets.BranchedNet` returns them.
        targets
            [B, T]: class numbers; a floating matrix with NaN for "missing" where the layout has regression tasks. Or by
            task name, where some targets are maps: [B, ...] each. Stored once, not once a branch.
        assignment
            Z: [T, K], or [B, T, K] for a draw per row, where a row's part of a task's loss is weighted by its own draw.

        Raises
        ------
        InvalidArgumentError
            For shapes that do not fit, classes that are not there, or a draw per row with a function as loss.
        InvalidTypeError
            For wrong types or dtypes.
        """
        parts = _Parts(self.layout, outputs, targets, self.ignore_index)
        if len(self.split.fused) == self.layout.num_tasks:
            total, self.task_losses = self._fused(parts, assignment)
            return total
        self._check_assignment(assignment, parts.num_branches)
        task_losses = assignment.new_zeros(self.layout.num_tasks, parts.num_branches, dtype=parts.dtype)
        totals = []
        if self.split.fused:
            total, task_losses[list(self.split.fused)] = self._fused(parts, assignment)
            totals.append(total)
        for kind, tasks in self.split.columns.items():
            rows = column_losses(kind, parts.outputs(tasks), parts.matrix(tasks))
            totals.append(_weighted(rows, assignment[..., list(tasks), :]))
            task_losses[list(tasks)] = rows.detach().sum(1).T
        for task, loss in self.split.single.items():
            rows = self._single(task, loss, parts, per_row=assignment.dim() == 3)
            totals.append(_weighted(rows, assignment[..., [task], :]))
            task_losses[task] = rows.detach().sum((1, 2))
        self.task_losses = task_losses
        return torch.stack(totals).sum()

    def _fused(self, parts: _Parts, assignment: Tensor) -> tuple[Tensor, Tensor]:
        fused, layout = self.split.fused, self.split.fused_layout
        assert layout is not None
        shares = assignment if layout is self.layout else assignment[..., list(fused), :]
        return assigned_cross_entropy(
            parts.outputs(fused),
            parts.classes(fused),
            shares,
            layout,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )

    def _single(self, task: int, loss: str | TaskLossFunction, parts: _Parts, per_row: bool) -> Tensor:
        """Return what each row adds to a task's loss in each branch, [K, B, 1]; a function's figure as one row."""
        name = self.layout.names[task]
        outputs, target = parts.output(task), parts.target(task)
        if isinstance(loss, str):
            return row_losses(loss, outputs, target, ignore_index=self.ignore_index).unsqueeze(-1)
        if per_row:
            raise InvalidArgumentError(
                f"losses must not be a function for task {name!r} where the assignment is drawn per row: a function "
                "gives one figure for the batch"
            )
        figures = [loss(own, target) for own in outputs.unbind()]
        for figure in figures:
            if not isinstance(figure, Tensor) or figure.numel() != 1:
                found = tuple(figure.shape) if isinstance(figure, Tensor) else type(figure).__name__
                raise InvalidArgumentError(f"losses of task {name!r} must return a scalar tensor; got {found}")
        return torch.stack([figure.reshape(()) for figure in figures]).view(-1, 1, 1)

    def _check_assignment(self, assignment: Tensor, branches: int) -> None:
        if not isinstance(assignment, Tensor) or not assignment.is_floating_point():
            raise InvalidTypeError(f"assignment must be a floating-point tensor; got {type(assignment).__name__}")
        wanted = (self.layout.num_tasks, branches)
        if assignment.dim() not in (2, 3) or tuple(assignment.shape[-2:]) != wanted:
            raise InvalidArgumentError(
                f"assignment must be [{wanted[0]}, {wanted[1]}] or [B, {wanted[0]}, {wanted[1]}]; "
                f"got {list(assignment.shape)}"
            )

    def extra_repr(self) -> str:
        """Name the size of the problem in ``repr``."""
        fused = len(self.split.fused)
        return f"{self.layout.num_tasks} tasks, {fused} of them fused, {self.layout.num_logits} logits"


class _Parts:
    """Outputs and targets of a batch, by task."""

    def __init__(
        self, layout: TaskLayout, outputs: Tensor | HeadOutputs, targets: Tensor | Mapping[str, Tensor], ignore: int
    ) -> None:
        self.layout, self.targets, self.ignore_index = layout, targets, ignore
        if isinstance(outputs, Tensor):
            outputs = HeadOutputs(outputs, {})
        if not isinstance(outputs, HeadOutputs):
            raise InvalidTypeError(f"outputs must be a tensor or HeadOutputs; got {type(outputs).__name__}")
        self.logits, self.others = outputs
        self.linear = layout
        if self.others:
            rest = [name for name in layout if name not in self.others]
            self.linear = layout.select(rest) if rest else layout
        self._check()

    @property
    def num_branches(self) -> int:
        first = self.logits if self.logits is not None else next(iter(self.others.values()))
        return len(first)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that losses are computed in."""
        first = self.logits if self.logits is not None else next(iter(self.others.values()))
        return torch.float64 if first.dtype == torch.float64 else torch.float32

    def outputs(self, tasks: Sequence[int]) -> Tensor:
        """Return [K, B, sum of C_t] of tasks whose outputs are columns."""
        names = [self.layout.names[t] for t in tasks]
        if self.logits is not None and not any(name in self.others for name in names):
            if len(tasks) == self.linear.num_tasks:
                return self.logits
            return pick(self.logits, columns_of(self.linear, [self.linear.index(name) for name in names]))
        return torch.cat([self.output(t) for t in tasks], dim=-1)

    def output(self, task: int) -> Tensor:
        """Return the outputs [K, B, ...] of one task."""
        name = self.layout.names[task]
        if name in self.others:
            return self.others[name]
        assert self.logits is not None
        return self.logits[..., self.linear.columns(name)]

    def matrix(self, tasks: Sequence[int]) -> Tensor:
        """Return targets [B, n] of tasks with one target a row."""
        if isinstance(self.targets, Tensor):
            return self.targets if len(tasks) == self.layout.num_tasks else pick(self.targets, tasks)
        return torch.stack([self.target(t).reshape(self._rows()) for t in tasks], dim=1)

    def classes(self, tasks: Sequence[int]) -> Tensor:
        """Return class numbers [B, n]; NaN of a floating matrix becomes ignore_index."""
        found = self.matrix(tasks)
        if not found.is_floating_point():
            return found
        return torch.where(found.isnan(), self.ignore_index, found).long()

    def target(self, task: int) -> Tensor:
        """Return the target [B, ...] of one task."""
        if isinstance(self.targets, Tensor):
            return self.targets[:, task]
        return self.targets[self.layout.names[task]]

    def _rows(self) -> int:
        first = self.logits if self.logits is not None else next(iter(self.others.values()))
        return int(first.shape[1])

    def _check(self) -> None:
        if self.logits is not None and (self.logits.dim() != 3 or self.logits.shape[2] != self.linear.num_logits):
            raise InvalidArgumentError(
                f"outputs must be [K, B, {self.linear.num_logits}] for this layout; got {list(self.logits.shape)}"
            )
        targets: Any = self.targets
        if isinstance(targets, Mapping):
            absent = [name for name in self.layout if name not in targets]
            if absent:
                raise InvalidArgumentError(f"targets must hold every task of the layout; {absent[0]!r} is not there")
            short = [name for name in self.layout if len(targets[name]) != self._rows()]
            if short:
                raise InvalidArgumentError(
                    f"targets of task {short[0]!r} must have {self._rows()} rows; got {len(targets[short[0]])}"
                )
        elif not isinstance(targets, Tensor):
            raise InvalidTypeError(f"targets must be a tensor or tensors by task name; got {type(targets).__name__}")
        elif targets.dim() != 2 or tuple(targets.shape) != (self._rows(), self.layout.num_tasks):
            raise InvalidArgumentError(
                f"targets must be [{self._rows()}, {self.layout.num_tasks}]; got {list(targets.shape)}"
            )


def _weighted(rows: Tensor, assignment: Tensor) -> Tensor:
    """Return the sum over branches, rows and tasks of rows [K, B, n] times shares [n, K] or [B, n, K]."""
    if assignment.dim() == 2:
        return (rows.sum(1) * assignment.T.to(rows.dtype)).sum()
    return (rows * assignment.permute(2, 0, 1).to(rows.dtype)).sum()
