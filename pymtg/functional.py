"""Functional form of the fused multi-task loss: validate, choose a backend, call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pymtg import _ops, _reference
from pymtg._assigned import assigned_cross_entropy
from pymtg._backend import choose_backend
from pymtg._batch_map import begun, ended
from pymtg._checks import check_kinds, check_map, check_targets, check_task_weights
from pymtg._linear import linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy
from pymtg._once import batched, detached, known_ones, once, to_save, used_once
from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

__all__ = [
    "assigned_cross_entropy",
    "linear_multitask_cross_entropy",
    "multitask_cross_entropy",
    "weighted_linear_multitask_cross_entropy",
    "weighted_multitask_cross_entropy",
]


def multitask_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    data_map: DataMap | None = None,
    sample_ids: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Per-task cross-entropies of all tasks at once, recording gold-label probabilities on the way.

    A one-logit task has the logistic loss of :class:`torch.nn.BCEWithLogitsLoss`, any other the softmax loss of
    :class:`torch.nn.CrossEntropyLoss`; each is the mean over the rows whose label is there, 0 where none is. With a
    data map, the same pass over the logits records ``softmax(logits_t)[y]`` (Swayamdipta et al., EMNLP 2020, section 2)
    at `sample_ids`. An id that stands several times in the batch counts as if its rows had come one after the other.

    Parameters
    ----------
    logits
        ``[B, layout.num_logits]``, float32, float64, float16 or bfloat16, any strides. Arithmetic is float32, or
        float64 for float64.
    targets
        ``[B, T]`` class numbers, an integer dtype or bool.
    layout
        Which columns belong to which task, and their ``pos_weight`` / class weights.
    ignore_index
        The label that stands for "missing": the (row, task) adds nothing to loss, gradient or map.
    data_map
        Map to record into. Rows with a non-finite loss are left out of it and counted in its ``num_rejected``.
        Nothing is recorded while a backward pass runs, so that a checkpointed segment counts once.
    sample_ids
        ``[B]`` positions in the data map, int64 or int32. Needed with a data map, otherwise not looked at.
    backend
        One of :func:`pymtg.available_backends`; by default ``"cpp"`` on the CPU and ``"reference"`` elsewhere.

    Returns
    -------
    Tensor
        ``[T]`` losses, unweighted (give task weights as the upstream gradient: ``(w * losses).sum()``), float32 or
        float64 as the arithmetic. Differentiable in `logits`, once.

    Raises
    ------
    InvalidArgumentError
        For wrong shapes, devices, a layout that is not the map's, a label that its task does not have.
    InvalidTypeError
        For wrong types or dtypes.
    SampleIdError
        For an id outside the map.
    MissingLabelError
        For a missing label met by a map of complete labels. Whatever is raised, the map is unchanged.

    Notes
    -----
    With the backends ``"triton"`` and ``"cuda"`` a label or an id out of range does not stop the host: that row is not
    recorded, the losses concerned are NaN, and the error is raised where the host next reads a data map, by
    :func:`pymtg.check_errors`, or at once under :class:`pymtg.debug`.
    """
    name = _check(logits, targets, layout, ignore_index, data_map, sample_ids, backend)
    words, counts, rejected, ids = begun(data_map, sample_ids)
    losses: Tensor
    if logits.requires_grad and torch.is_grad_enabled():
        losses = _Losses.apply(  # type: ignore[no-untyped-call]
            logits, targets, ids, words, counts, rejected, layout.handle, ignore_index, name
        )
    else:
        losses, _ = _ops.multitask_cross_entropy(
            logits, targets, None, ids, words, counts, rejected, layout.handle, ignore_index, name, False
        )
    ended(data_map, (words, counts, rejected), targets, ignore_index, sample_ids)
    return losses


def weighted_multitask_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    layout: TaskLayout,
    task_weights: Tensor | None = None,
    *,
    ignore_index: int = -100,
    data_map: DataMap | None = None,
    sample_ids: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(w * losses).sum()`` and the detached losses of :func:`multitask_cross_entropy`.

    The weights, ``[T]`` and constant, go into the gradient as it is first computed; as an upstream gradient they would
    cost another pass over it. All else is as in :func:`multitask_cross_entropy`.
    """
    name = _check(logits, targets, layout, ignore_index, data_map, sample_ids, backend)
    if task_weights is not None:
        check_task_weights(task_weights, layout, logits)
    words, counts, rejected, ids = begun(data_map, sample_ids)
    total: Tensor
    losses: Tensor
    if logits.requires_grad and torch.is_grad_enabled():
        total, losses = _WeightedTotal.apply(  # type: ignore[no-untyped-call]
            logits, targets, task_weights, ids, words, counts, rejected, layout.handle, ignore_index, name
        )
    else:
        losses, _ = _ops.multitask_cross_entropy(
            logits, targets, None, ids, words, counts, rejected, layout.handle, ignore_index, name, False
        )
        total = _total(losses, task_weights)
    ended(data_map, (words, counts, rejected), targets, ignore_index, sample_ids)
    return total, losses


def _total(losses: Tensor, task_weights: Tensor | None) -> Tensor:
    return losses.sum() if task_weights is None else torch.dot(losses, task_weights.to(losses.dtype))


class _Losses(torch.autograd.Function):
    """[T] losses. The forward leaves the gradient for an upstream gradient of ones; the backward scales it.

    Or, where the backend recomputes it, the logits: the backward then computes it once, for the upstream gradient at
    hand, rounded once to the logits' dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        sample_ids: Tensor | None,
        words: Tensor | None,
        counts: Tensor | None,
        rejected: Tensor | None,
        layout: int,
        ignore_index: int,
        backend: str,
    ) -> Tensor:
        losses: Tensor
        losses, gradient = _ops.multitask_cross_entropy(
            logits, targets, None, sample_ids, words, counts, rejected, layout, ignore_index, backend, True
        )
        ctx.layout, ctx.backend, ctx.dtype, ctx.ignore_index = layout, backend, logits.dtype, ignore_index
        _keep(ctx, gradient, logits, targets, None)
        if not torch.compiler.is_compiling():
            ctx.keep = TaskLayout.with_handle(layout)  # the caller may drop it before the backward pass
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _recomputed(ctx, upstream) if ctx.recomputes else _scaled(ctx, upstream)
        return once(gradient, ctx, upstream, ctx.dtype), None, None, None, None, None, None, None, None


class _WeightedTotal(torch.autograd.Function):
    """The weighted sum of the losses, with the weights folded into the gradient, and the losses beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        task_weights: Tensor | None,
        sample_ids: Tensor | None,
        words: Tensor | None,
        counts: Tensor | None,
        rejected: Tensor | None,
        layout: int,
        ignore_index: int,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        losses, gradient = _ops.multitask_cross_entropy(
            logits, targets, task_weights, sample_ids, words, counts, rejected, layout, ignore_index, backend, True
        )
        ctx.layout, ctx.backend, ctx.dtype, ctx.ignore_index = layout, backend, logits.dtype, ignore_index
        _keep(ctx, gradient, logits, targets, task_weights)
        if not torch.compiler.is_compiling():
            ctx.keep = TaskLayout.with_handle(layout)  # the caller may drop it before the backward pass
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)  # no zeros for the losses that nothing flows back from
        return _total(losses, task_weights), losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 10
        gradient = _recomputed(ctx, upstream) if ctx.recomputes else _scaled(ctx, upstream)
        return once(gradient, ctx, upstream, ctx.dtype), None, None, None, None, None, None, None, None, None


def _keep(ctx: Any, left: Tensor, logits: Tensor, targets: Tensor, task_weights: Tensor | None) -> None:
    """Save for the backward pass what the operator left, and what a recomputation needs beside."""
    ctx.recomputes = _ops.recomputes(ctx.backend)
    if ctx.recomputes:
        ctx.save_for_backward(left, logits, to_save(targets), to_save(task_weights))
    else:
        ctx.save_for_backward(left)


def _scaled(ctx: Any, upstream: Tensor) -> Tensor:
    """Return the gradient that the forward pass has left times an upstream gradient ``[T]`` or ``[]``."""
    gradient: Tensor
    (gradient,) = ctx.saved_tensors
    if known_ones(upstream):
        return gradient
    many, upstream = batched(upstream), detached(upstream)
    if _ops.scales_in_place(ctx.backend) and not many and used_once():
        _ops.scale_gradient_(gradient, upstream, ctx.layout, ctx.backend)
        return gradient
    if upstream.dim() == 0:
        return gradient * upstream
    if many:  # in plain torch: an operator would be called for one after the other
        return _reference.scale_gradient(gradient, upstream, TaskLayout.with_handle(ctx.layout))
    return _ops.scale_gradient(gradient, upstream, ctx.layout, ctx.backend)  # type: ignore[no-any-return]


def _recomputed(ctx: Any, upstream: Tensor) -> Tensor:
    left, logits, targets, task_weights = ctx.saved_tensors
    gradient: Tensor = _ops.recomputed_gradient(
        left, logits, targets, detached(upstream), task_weights, ctx.layout, ctx.ignore_index, ctx.backend
    )
    return gradient


def _check(
    logits: Tensor,
    targets: Tensor,
    layout: TaskLayout,
    ignore_index: int,
    data_map: DataMap | None,
    sample_ids: Tensor | None,
    backend: str | None,
) -> str:
    """Validate what can be seen without reading values; return the name of the backend."""
    check_kinds(logits, targets, layout, ignore_index)
    if logits.dim() != 2 or logits.shape[1] != layout.num_logits:
        raise InvalidArgumentError(f"logits must be [B, {layout.num_logits}] for this layout; got {list(logits.shape)}")
    check_targets(targets, logits.shape[0], layout, logits.device)
    if data_map is not None:
        check_map(logits, layout, data_map, sample_ids)
    return choose_backend(backend, logits.device)
