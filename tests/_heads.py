"""Random batches for K heads of the same tasks with an assignment, and the plain definition of their loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _cases import Case, random_case
from torch import Tensor

from pymtg import TaskLayout

STACKS = ("plain", "heads inside rows", "gaps", "columns first", "one head", "one row")


def stacked(values: Tensor, strides: str) -> Tensor:
    """Return equal values ``[K, B, C]`` in other strides, NaN around them; the last two share what they may."""
    heads, rows, columns = values.shape
    if strides == "heads inside rows":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if strides == "gaps":
        view = values.new_full((heads + 1, rows + 3, columns + 5), torch.nan)[1:, 2 : rows + 2, 4 : columns + 4]
    elif strides == "columns first":
        view = values.new_full((columns + 1, heads, rows), torch.nan)[:columns].permute(1, 2, 0)
    elif strides == "one head":
        return values[:1].expand(heads, rows, columns)
    elif strides == "one row":
        return values[:, :1].expand(heads, rows, columns) if rows else values.clone()
    else:
        return values.clone()
    view.copy_(values)
    return view


@dataclass
class Heads:
    """Logits ``[K, B, C]`` and an assignment, both needing a gradient, and targets."""

    layout: TaskLayout
    logits: Tensor
    targets: Tensor
    assignment: Tensor
    ignore_index: int

    def __str__(self) -> str:
        return (
            f"logits {self.logits.dtype} {list(self.logits.shape)} strides {self.logits.stride()}, "
            f"targets {self.targets.dtype} strides {self.targets.stride()}, "
            f"assignment {self.assignment.dtype} {list(self.assignment.shape)}, classes {self.layout.num_classes}"
        )


def random_heads(
    layout: TaskLayout,
    heads: int,
    rows: int,
    generator: torch.Generator,
    *,
    per_row: bool = False,
    dtype: torch.dtype = torch.float32,
    assignment_dtype: torch.dtype | None = None,
    strides: str = "plain",
    **of_case: str | torch.dtype,
) -> Heads:
    """Draw K sets of logits for one batch of :func:`_cases.random_case` and an assignment, some of it zeros."""
    case: Case = random_case(layout, rows, generator, dtype=dtype, **of_case)
    logits = 4 * torch.randn(heads, rows, layout.num_logits, generator=generator, dtype=torch.float64)
    logits[0] = case.logits.detach()
    shape = (rows, layout.num_tasks, heads) if per_row else (layout.num_tasks, heads)
    assignment = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)
    assignment = torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, assignment)
    return Heads(
        layout,
        stacked(logits.to(dtype), strides).detach().requires_grad_(),
        case.targets,
        assignment.to(assignment_dtype or dtype).requires_grad_(),
        case.ignore_index,
    )


def plain_total(heads: Heads, logits: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Total and losses ``[T, K]``, a head and task at a time with torch's own losses, in the arguments' dtype."""
    layout, total, losses = heads.layout, logits.new_zeros(()), []
    for t, name in enumerate(layout.names):
        there = heads.targets[:, t].long() != heads.ignore_index
        y, count = heads.targets[there, t].long(), max(int(there.sum()), 1)
        for k in range(len(logits)):
            each = row_losses(layout, t, logits[k][there][:, layout.columns(name)], y)
            share = assignment[there, t, k] if assignment.dim() == 3 else assignment[t, k]
            total = total + (share * each).sum() / count
            losses.append(each.sum().detach() / count)
    return total, torch.stack(losses).view(layout.num_tasks, -1)


def row_losses(layout: TaskLayout, t: int, x: Tensor, y: Tensor) -> Tensor:
    """Weighted losses of the rows of one task."""
    if x.shape[1] > 1:
        weights = None if layout.class_weights is None else layout.class_weights[t]
        weight = None if weights is None else torch.tensor(weights, dtype=x.dtype)
        return F.cross_entropy(x, y, weight, reduction="none")
    one = None if layout.pos_weight is None else layout.pos_weight[t]
    pos_weight = None if one is None else torch.tensor(one, dtype=x.dtype)
    return F.binary_cross_entropy_with_logits(x[:, 0], y.to(x.dtype), pos_weight=pos_weight, reduction="none")


def truth_of(heads: Heads, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, losses, gradient of the logits, gradient of the assignment of the plain definition in `dtype`."""
    logits = heads.logits.detach().to(dtype).requires_grad_()
    assignment = heads.assignment.detach().to(dtype).requires_grad_()
    total, losses = plain_total(heads, logits, assignment)
    gradients = torch.autograd.grad(total, (logits, assignment), materialize_grads=True)
    return total.detach(), losses, *gradients
