"""The loss of a network of K branches with a head for every task, under an assignment of tasks to branches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pymtg._branch_parts import BranchParts
from pymtg._checks import check_floating
from pymtg._task_losses import column_losses, row_losses
from pymtg._task_split import TaskLossFunction, called, split_tasks
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
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise InvalidTypeError(f"ignore_index must be an integer; got {ignore_index!r}")
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
        parts = BranchParts(self.layout, outputs, targets, self.ignore_index)
        if len(self.split.fused) == self.layout.num_tasks:
            total, self.task_losses = self._fused(parts, assignment)
            return total
        self._check_assignment(assignment, parts)
        task_losses = assignment.new_zeros(self.layout.num_tasks, parts.num_branches, dtype=parts.dtype)
        totals = []
        if self.split.fused:
            total, task_losses[list(self.split.fused)] = self._fused(parts, assignment)
            totals.append(total)
        single = dict(self.split.single)
        for kind, every in self.split.columns.items():
            tasks = [t for t in every if parts.is_column(t)]
            single |= {t: kind for t in every if t not in tasks}  # maps of their own heads
            if not tasks:
                continue
            rows = column_losses(kind, parts.outputs(tasks), parts.matrix(tasks))
            totals.append(_weighted(rows, assignment[..., tasks, :]))
            task_losses[tasks] = rows.detach().sum(1).T
        for task, loss in single.items():
            rows = self._single(task, loss, parts, per_row=assignment.dim() == 3)
            totals.append(_weighted(rows, assignment[..., [task], :]))
            task_losses[task] = rows.detach().sum((1, 2))
        self.task_losses = task_losses
        return torch.stack(totals).sum()

    def _fused(self, parts: BranchParts, assignment: Tensor) -> tuple[Tensor, Tensor]:
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

    def _single(self, task: int, loss: str | TaskLossFunction, parts: BranchParts, per_row: bool) -> Tensor:
        """Return what each row adds to a task's loss in each branch, [K, B, 1]; a function's figure as one row."""
        name = self.layout.names[task]
        outputs = parts.output(task)
        if isinstance(loss, str):
            target = parts.class_map(task) if self.layout.kinds[task] == "classification" else parts.target(task)
            return row_losses(loss, outputs, target, ignore_index=self.ignore_index).unsqueeze(-1)
        if per_row:
            raise InvalidArgumentError(
                f"losses must not be a function for task {name!r} where the assignment is drawn per row: a function "
                "gives one figure for the batch"
            )
        figures = [called(loss, own, parts.target(task), name) for own in outputs.unbind()]
        for figure in figures:
            if not isinstance(figure, Tensor) or figure.numel() != 1:
                found = tuple(figure.shape) if isinstance(figure, Tensor) else type(figure).__name__
                raise InvalidArgumentError(f"losses of task {name!r} must return a scalar tensor; got {found}")
        return torch.stack([figure.reshape(()).to(parts.dtype) for figure in figures]).view(-1, 1, 1)

    def _check_assignment(self, assignment: Tensor, parts: BranchParts) -> None:
        check_floating(assignment, "assignment")
        plain = [self.layout.num_tasks, parts.num_branches]
        if list(assignment.shape) not in (plain, [parts.num_rows, *plain]):
            raise InvalidArgumentError(
                f"assignment must be {plain}, or {[parts.num_rows, *plain]} for one per row; "
                f"got {list(assignment.shape)}"
            )

    def extra_repr(self) -> str:
        """Name the size of the problem in ``repr``."""
        fused = len(self.split.fused)
        return f"{self.layout.num_tasks} tasks, {fused} of them fused, {self.layout.num_logits} logits"


def _weighted(rows: Tensor, assignment: Tensor) -> Tensor:
    """Return the sum over branches, rows and tasks of rows [K, B, n] times shares [n, K] or [B, n, K]."""
    if assignment.dim() == 2:
        return (rows.sum(1) * assignment.T.to(rows.dtype)).sum()
    return (rows * assignment.permute(2, 0, 1).to(rows.dtype)).sum()
