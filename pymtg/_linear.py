"""The fused loss of a linear layer's outputs, which are never all there at once; public in :mod:`pymtg.functional`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pymtg import _linear_ops
from pymtg._backend import choose_backend
from pymtg._batch_map import begun, ended
from pymtg._checks import (
    LOGIT_DTYPES,
    check_kind,
    check_kinds,
    check_map,
    check_no_tangent,
    check_targets,
    check_task_weights,
)
from pymtg._once import detached, known_ones, once, to_save
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

_NAME = "linear_multitask_cross_entropy"


def linear_multitask_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    data_map: DataMap | None = None,
    sample_ids: Tensor | None = None,
    max_columns: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Per-task cross-entropies of ``features @ weight.T + bias``, whose logits are never all in memory at once.

    The same losses, gradients and data map as :func:`multitask_cross_entropy` of
    ``torch.nn.functional.linear(features, weight, bias)``, for many tasks or classes, where the logits ``[B, sum C]``
    are what fills the memory. They are computed in chunks of whole tasks, and again in the backward pass: a third more
    arithmetic than with the logits kept (four products instead of three).
    :func:`weighted_linear_multitask_cross_entropy` does without that.

    Parameters
    ----------
    features
        ``[B, D]``, dense, of a dtype that logits may have. Under autocast they, `weight` and `bias` are brought to its
        dtype, as a linear layer does.
    weight
        ``[layout.num_logits, D]``, as ``torch.nn.Linear(D, layout.num_logits)`` has it; in the dtype of `features`.
    bias
        ``[layout.num_logits]`` or None.
    targets, layout, ignore_index, data_map, sample_ids, backend
        As in :func:`multitask_cross_entropy`. Probabilities reach the map in the form in which it keeps them, with an
        error below 7e-8.
    max_columns
        Logits of a row that are computed at once, at most, but for a task that has more. By default so many that a
        chunk holds 2^19 logits on the CPU, 2^24 on a GPU.

    Returns
    -------
    Tensor
        ``[T]`` losses. Differentiable in `features`, `weight` and `bias`, once. The backward pass reads these and the
        targets: none of them may be changed before it.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError, SampleIdError, MissingLabelError
        As :func:`multitask_cross_entropy`; the map is then unchanged.
    """
    features, weight, bias, name = _prepared(
        features, weight, bias, targets, layout, ignore_index, data_map, sample_ids, max_columns, backend
    )
    words, counts, rejected, ids = begun(data_map, sample_ids)
    losses = _losses(
        features, weight, bias, targets, ids, words, counts, rejected, layout.handle, ignore_index, max_columns, name
    )
    ended(data_map, (words, counts, rejected), targets, ignore_index, sample_ids)
    return losses


def weighted_linear_multitask_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    layout: TaskLayout,
    task_weights: Tensor | None = None,
    *,
    ignore_index: int = -100,
    data_map: DataMap | None = None,
    sample_ids: Tensor | None = None,
    max_columns: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(w * losses).sum()`` and the detached losses of :func:`linear_multitask_cross_entropy`.

    With constant weights ``[T]`` the gradients are known as soon as the logits of a chunk are, so that nothing is
    computed twice: they are left for the backward pass, which scales them. In float16 that could lose small gradients
    before a loss scale reaches them; there the logits are computed again.
    """
    features, weight, bias, name = _prepared(
        features, weight, bias, targets, layout, ignore_index, data_map, sample_ids, max_columns, backend
    )
    if task_weights is not None:
        check_task_weights(task_weights, layout, features)
    words, counts, rejected, ids = begun(data_map, sample_ids)
    total: Tensor
    if features.dtype == torch.float16:
        losses = _losses(
            *(features, weight, bias, targets, ids, words, counts, rejected),
            *(layout.handle, ignore_index, max_columns, name),
        )
        total = losses.sum() if task_weights is None else torch.dot(losses, task_weights.to(losses.dtype))
        losses = losses.detach()
    else:
        needed = _needed(features, weight, bias)
        function: Any = _Total.apply if any(needed) else _linear_ops.linear_cross_entropy_total
        total, losses = function(
            *(features, weight, bias, targets, task_weights, ids, words, counts, rejected),
            *(layout.handle, ignore_index, max_columns, name, *needed),
        )[:2]
    ended(data_map, (words, counts, rejected), targets, ignore_index, sample_ids)
    return total, losses


def _needed(features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[bool, bool, bool]:
    """Return of which of them gradients are needed."""
    if not torch.is_grad_enabled():
        return False, False, False
    return features.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad


def _losses(features: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    if any(_needed(features, weight, bias)):
        return _Losses.apply(features, weight, bias, *rest)  # type: ignore[no-any-return, no-untyped-call]
    return _linear_ops.linear_cross_entropy(features, weight, bias, *rest, False)[0]  # type: ignore[no-any-return]


class _Losses(torch.autograd.Function):
    """[T] losses; the backward pass computes the logits again, chunk by chunk, with the upstream gradient at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        sample_ids: Tensor | None,
        words: Tensor | None,
        counts: Tensor | None,
        rejected: Tensor | None,
        layout: int,
        ignore_index: int,
        max_columns: int | None,
        backend: str,
    ) -> Tensor:
        losses: Tensor
        losses, left = _linear_ops.linear_cross_entropy(
            *(features, weight, bias, targets, sample_ids, words, counts, rejected),
            *(layout, ignore_index, max_columns, backend, True),
        )
        if not torch.compiler.is_compiling():
            ctx.keep = TaskLayout.with_handle(layout)  # the caller may drop it before the backward pass
        ctx.save_for_backward(left, features, weight, bias, to_save(targets))
        ctx.layout, ctx.ignore_index, ctx.max_columns, ctx.backend = layout, ignore_index, max_columns, backend
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        left, features, weight, bias, targets = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        gradients = _linear_ops.linear_cross_entropy_gradient(
            *(left, features.detach(), weight.detach(), None if bias is None else bias.detach(), targets),
            *(detached(upstream), ctx.layout, ctx.ignore_index, ctx.max_columns, ctx.backend, *needed),
        )
        return *_handed_on(ctx, upstream, gradients), *(None,) * 9


class _Total(torch.autograd.Function):
    """The weighted sum of the losses, and the losses beside it; the forward pass leaves all gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        task_weights: Tensor | None,
        sample_ids: Tensor | None,
        words: Tensor | None,
        counts: Tensor | None,
        rejected: Tensor | None,
        layout: int,
        ignore_index: int,
        max_columns: int | None,
        backend: str,
        of_features: bool,
        of_weight: bool,
        of_bias: bool,
    ) -> tuple[Tensor, Tensor]:
        total: Tensor
        losses: Tensor
        total, losses, *gradients = _linear_ops.linear_cross_entropy_total(
            *(features, weight, bias, targets, task_weights, sample_ids, words, counts, rejected),
            *(layout, ignore_index, max_columns, backend, of_features, of_weight, of_bias),
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return total, losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 16
        gradients = ctx.saved_tensors
        if not known_ones(upstream):
            gradients = tuple(one * detached(upstream) for one in gradients)
        return *_handed_on(ctx, upstream, gradients), *(None,) * 13


def _handed_on(ctx: Any, upstream: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Return the gradients that are needed; their derivatives are errors."""
    return tuple(
        once(one, ctx, upstream, one.dtype, _NAME) if needed else None
        for one, needed in zip(gradients, ctx.needs_input_grad[:3], strict=True)
    )


def _prepared(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    layout: TaskLayout,
    ignore_index: int,
    data_map: DataMap | None,
    sample_ids: Tensor | None,
    max_columns: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """Validate what can be seen without reading values; return tensors as autocast wants them, and the backend."""
    check_kind(features, "features", LOGIT_DTYPES)
    check_no_tangent(features, "features")
    check_kind(weight, "weight", LOGIT_DTYPES)
    check_no_tangent(weight, "weight")
    if bias is not None:
        check_kind(bias, "bias", LOGIT_DTYPES)
        check_no_tangent(bias, "bias")
    check_kinds(features, targets, layout, ignore_index)
    if _autocasts(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check_shapes(features, weight, bias, layout)
    check_targets(targets, features.shape[0], layout, features.device)
    if data_map is not None:
        check_map(features, layout, data_map, sample_ids)
        if features.is_meta:
            raise InvalidArgumentError("data_map must be None for features on the meta device, which hold no values")
    _check_columns(max_columns)
    return features, weight, bias, choose_backend(backend, features.device)


def _autocasts(device_type: str) -> bool:
    """Return whether autocast is on; torch raises for devices that do not have it, such as meta."""
    if torch.compiler.is_compiling():  # compilers that are older fold the second question alone
        return device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _check_shapes(features: Tensor, weight: Tensor, bias: Tensor | None, layout: TaskLayout) -> None:
    if features.dim() != 2:
        raise InvalidArgumentError(f"features must be [B, D]; got {list(features.shape)}")
    expected = [layout.num_logits, features.shape[1]]
    if list(weight.shape) != expected:
        raise InvalidArgumentError(f"weight must be {expected} for this layout; got {list(weight.shape)}")
    if bias is not None and list(bias.shape) != expected[:1]:
        raise InvalidArgumentError(f"bias must be {expected[:1]}; got {list(bias.shape)}")
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != features.dtype or tensor.device != features.device):
            raise InvalidArgumentError(
                f"{what} must be {features.dtype} on {features.device}, as features; "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _check_columns(max_columns: int | None) -> None:
    if max_columns is None:
        return
    if isinstance(max_columns, bool) or not isinstance(max_columns, (int, torch.SymInt)):
        raise InvalidTypeError(f"max_columns must be an integer; got {max_columns!r}")
    if max_columns < 1:
        raise InvalidArgumentError(f"max_columns must be at least 1; got {max_columns}")
