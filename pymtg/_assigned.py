"""The loss of K heads a task under an assignment of tasks to heads; public as :mod:`pymtg.functional`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pymtg import _ops
from pymtg._backend import choose_backend
from pymtg._checks import LOGIT_DTYPES, check_kind, check_kinds, check_no_tangent, check_targets
from pymtg._once import detached, known_ones, once
from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout

_NAME = "assigned_cross_entropy"


def assigned_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of all K heads' losses of all T tasks, each times its share in an assignment of tasks to heads.

    ``total = sum_tk Z_tk loss_tk`` with ``loss_tk`` the loss of :func:`multitask_cross_entropy` of task t in head
    k: the objective of DMTG (Gao et al., ICML 2024), whose K branches carry a head for every task. With
    an assignment per row it is ``sum_t 1 / n_t sum_bk Z_btk l_btk``, `l_btk` the loss of a row and `n_t` the rows whose
    label is there. One call serves all heads: targets are stored and checked once.

    Parameters
    ----------
    logits
        ``[K, B, layout.num_logits]``, a head after the other, float32, float64, float16 or bfloat16, any strides.
        Arithmetic is float32, or float64 for float64.
    targets
        ``[B, T]`` class numbers, an integer dtype or bool.
    assignment
        ``Z``: ``[T, K]``, or ``[B, T, K]`` for one per row; any values, of a dtype that logits may have. It is brought
        to the arithmetic's dtype.
    layout
        Which columns belong to which task, and their ``pos_weight`` / class weights.
    ignore_index
        The label that stands for "missing": the (row, task) adds nothing to loss or gradients.
    backend
        One of :func:`pymtg.available_backends`; by default ``"cpp"`` on the CPU and ``"reference"`` elsewhere.

    Returns
    -------
    total
        Scalar, float32 or float64 as the arithmetic. Differentiable in `logits` and `assignment`, once. A share of 0
        does not switch a loss off that is not finite: 0 times infinity is NaN, as in the sum written out.
    losses
        ``[T, K]`` means over the rows whose label is there, 0 where none is; unweighted, without a gradient.

    Raises
    ------
    InvalidArgumentError
        For wrong shapes or devices, a label that its task does not have.
    InvalidTypeError
        For wrong types or dtypes.
    """
    name = _check(logits, targets, assignment, layout, ignore_index, backend)
    grad = torch.is_grad_enabled()
    need_gradient = grad and logits.requires_grad
    if need_gradient or (grad and assignment.requires_grad):
        return _Total.apply(  # type: ignore[no-any-return, no-untyped-call]
            logits, targets, assignment, layout.handle, ignore_index, name, need_gradient
        )
    total, losses, _, _ = _ops.assigned_cross_entropy(
        logits, targets, assignment, layout.handle, ignore_index, name, False
    )
    return total, losses


class _Total(torch.autograd.Function):
    """The total, and the losses beside it. The forward leaves both gradients for an upstream gradient of one."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        assignment: Tensor,
        layout: int,
        ignore_index: int,
        backend: str,
        need_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        total, losses, gradient, row_losses = _ops.assigned_cross_entropy(
            logits, targets, assignment, layout, ignore_index, backend, need_gradient
        )
        ctx.save_for_backward(gradient, losses if assignment.dim() == 2 else row_losses)
        ctx.dtypes = logits.dtype, assignment.dtype
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)  # no zeros for the losses that nothing flows back from
        return total, losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        ones = known_ones(upstream)
        gradients = [
            once(saved if ones else saved * detached(upstream), ctx, upstream, dtype, _NAME) if needed else None
            for saved, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, (ctx.needs_input_grad[0], ctx.needs_input_grad[2]), strict=True
            )
        ]
        return gradients[0], None, gradients[1], None, None, None, None


def _check(
    logits: Tensor, targets: Tensor, assignment: Tensor, layout: TaskLayout, ignore_index: int, backend: str | None
) -> str:
    """Validate what can be seen without reading values; return the name of the backend."""
    check_kinds(logits, targets, layout, ignore_index)
    check_kind(assignment, "assignment", LOGIT_DTYPES)
    check_no_tangent(assignment, "assignment")
    if logits.dim() != 3 or logits.shape[2] != layout.num_logits or logits.shape[0] == 0:
        raise InvalidArgumentError(
            f"logits must be [K, B, {layout.num_logits}] for this layout, K at least 1; got {list(logits.shape)}"
        )
    heads, rows = logits.shape[:2]
    check_targets(targets, rows, layout, logits.device)
    plain = (layout.num_tasks, heads)
    if assignment.shape != plain and assignment.shape != (rows, *plain):
        raise InvalidArgumentError(
            f"assignment must be {list(plain)}, or {[rows, *plain]} for one per row; got {list(assignment.shape)}"
        )
    if assignment.device != logits.device:
        raise InvalidArgumentError(
            f"assignment must be on the logits' device {logits.device}; it is on {assignment.device}"
        )
    return choose_backend(backend, logits.device)
