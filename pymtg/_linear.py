"""The fused loss of a linear layer's outputs, which are never all there at once; public in :mod:`pymtg.functional`."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pymtg import _ops
from pymtg._backend import backend_named, choose_backend
from pymtg._batch_map import batch_map, signed_probabilities
from pymtg._checks import LOGIT_DTYPES, check_kind, check_kinds, check_map, check_targets, check_task_weights
from pymtg._once import in_backward, known_ones, once
from pymtg._reference import check_complete, check_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

_NAME = "linear_multitask_cross_entropy"
_CHUNK = {"cpu": 2**19, "cuda": 2**24}
"""Logits computed at once by default: on the CPU what its caches hold, on a GPU what keeps it busy."""


class Chunk(NamedTuple):
    """A run of whole tasks."""

    tasks: slice
    columns: slice
    layout: TaskLayout


class Call(NamedTuple):
    """What a call consists of beside tensors that may need a gradient."""

    targets: Tensor
    chunks: tuple[Chunk, ...]
    ignore_index: int
    backend: str
    grad: bool
    """Whether gradients were enabled where it was made: not so in an autograd.Function's forward."""


_chunks_of: dict[tuple[int, int], tuple[Chunk, ...]] = {}


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
        ``[T]`` losses. Differentiable in `features`, `weight` and `bias`, once.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError, SampleIdError, MissingLabelError
        As :func:`multitask_cross_entropy`; the map is then unchanged. Calls cannot be part of
        ``torch.compile(fullgraph=True)``: chunks are cut in Python.
    """
    features, weight, bias, call = _prepared(
        features, weight, bias, targets, layout, ignore_index, data_map, sample_ids, max_columns, backend
    )
    seen: list[Tensor] | None = [] if _records(data_map) else None
    losses: Tensor = _Losses.apply(features, weight, bias, call, seen)  # type: ignore[no-untyped-call]
    _record(seen, call, data_map, sample_ids)
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
    features, weight, bias, call = _prepared(
        features, weight, bias, targets, layout, ignore_index, data_map, sample_ids, max_columns, backend
    )
    if task_weights is not None:
        check_task_weights(task_weights, layout, features)
    seen: list[Tensor] | None = [] if _records(data_map) else None
    if features.dtype == torch.float16:
        losses: Tensor = _Losses.apply(features, weight, bias, call, seen)  # type: ignore[no-untyped-call]
        total = losses.sum() if task_weights is None else torch.dot(losses, task_weights.to(losses.dtype))
        losses = losses.detach()
    else:
        total, losses = _Total.apply(features, weight, bias, task_weights, call, seen)  # type: ignore[no-untyped-call]
    _record(seen, call, data_map, sample_ids)
    return total, losses


class _Losses(torch.autograd.Function):
    """[T] losses; the backward pass computes the logits again, chunk by chunk, with the upstream gradient at hand."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, call: Call, seen: list[Tensor] | None
    ) -> Tensor:
        losses, left = [], []
        recomputes = _ops.recomputes(call.backend)
        logits = _Logits(features, weight, bias, call.chunks)
        for chunk in call.chunks:
            loss, kept = _forward(logits.of(chunk), chunk, call, None, recomputes, seen)
            losses.append(loss)
            left.append(kept)
        ctx.call = call
        ctx.save_for_backward(features, weight, bias, *left)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, *left = ctx.saved_tensors
        sums = _Gradients(features, weight, bias, ctx.needs_input_grad)
        upstream = upstream.detach()
        with torch.no_grad():
            logits = _Logits(features, weight, bias, ctx.call.chunks)
            for chunk, kept in zip(ctx.call.chunks, left, strict=True):
                sums.add(chunk, _gradient(logits.of(chunk), chunk, ctx.call, upstream[chunk.tasks].contiguous(), kept))
        return *sums.results(), None, None


class _Total(torch.autograd.Function):
    """The weighted sum of the losses, and the losses beside it; the forward pass leaves all gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task_weights: Tensor | None,
        call: Call,
        seen: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = _ops.arithmetic_dtype(features.dtype)
        weights = features.new_ones(call.targets.shape[1], dtype=dtype)
        if task_weights is not None:
            weights = task_weights.to(dtype)
        sums = _Gradients(features, weight, bias, ctx.needs_input_grad if call.grad else (False, False, False))
        losses = []
        all_logits = _Logits(features, weight, bias, call.chunks)
        for chunk in call.chunks:
            logits, w = all_logits.of(chunk), weights[chunk.tasks].contiguous()
            loss, left = _forward(logits, chunk, call, w, sums.needed, seen)
            losses.append(loss)
            if sums.needed:
                if _ops.recomputes(call.backend):
                    left = _gradient(logits, chunk, call, w, left)
                sums.add(chunk, left.to(logits.dtype))
        all_losses = torch.cat(losses)
        ctx.save_for_backward(*sums.sums)
        ctx.mark_non_differentiable(all_losses)
        ctx.set_materialize_grads(False)
        return torch.dot(all_losses, weights), all_losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 6
        ones = known_ones(upstream)
        scaled = [
            None if one is None else once(one if ones else one * upstream.detach(), one.dtype, _NAME)
            for one in ctx.saved_tensors
        ]
        return *scaled, None, None, None


class _Gradients:
    """Sums over the chunks of the gradients of features, weight and bias: those that are needed."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.features, self.weight = features, weight
        self.needed = any(needed[:3])
        wide = _ops.arithmetic_dtype(features.dtype)
        self.of_features = torch.zeros_like(features, dtype=wide) if needed[0] else None
        self.of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needed[1] else None
        self.of_bias = None if bias is None or not needed[2] else torch.empty_like(bias)

    def add(self, chunk: Chunk, gradient: Tensor) -> None:
        """Add a chunk's share, given the gradient of its logits [B, C] in their dtype."""
        if self.of_features is not None:
            if self.of_features.dtype == gradient.dtype:
                self.of_features.addmm_(gradient, self.weight[chunk.columns])
            else:
                self.of_features += gradient @ self.weight[chunk.columns]
        if self.of_weight is not None:
            torch.mm(gradient.T, self.features, out=self.of_weight[chunk.columns])
        if self.of_bias is not None:
            self.of_bias[chunk.columns] = gradient.sum(0)

    @property
    def sums(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients, each in the dtype of what it belongs to."""
        of_features = None if self.of_features is None else self.of_features.to(self.features.dtype)
        return of_features, self.of_weight, self.of_bias

    def results(self) -> tuple[Tensor | None, ...]:
        """Return the gradients; their derivatives are errors."""
        return tuple(None if one is None else once(one, one.dtype, _NAME) for one in self.sums)


class _Logits:
    """The logits of a chunk, each in the place of the last one's: allocations of their own would tear up the heap."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None, chunks: tuple[Chunk, ...]) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        widest = max(chunk.columns.stop - chunk.columns.start for chunk in chunks)
        self.buffer = features.new_empty(len(features) * widest)

    def of(self, chunk: Chunk) -> Tensor:
        """Return logits [B, C] that are there until the next call."""
        columns = self.weight[chunk.columns].T
        out = self.buffer[: len(self.features) * columns.shape[1]].view(len(self.features), columns.shape[1])
        if self.bias is None:
            return torch.mm(self.features, columns, out=out)
        return torch.addmm(self.bias[chunk.columns], self.features, columns, out=out)


def _forward(
    logits: Tensor, chunk: Chunk, call: Call, weights: Tensor | None, need: bool, seen: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return a chunk's losses and what the operator leaves; append its gold probabilities to `seen`."""
    targets = call.targets[:, chunk.tasks]
    state: tuple[Tensor | None, ...] = (None, None, None, None)
    if seen is not None:
        rows, tasks = targets.shape
        batch = batch_map(rows, tasks, logits.device, missing=True)
        state = (torch.arange(rows, device=logits.device), *batch)
    losses, left = _ops.multitask_cross_entropy(
        logits, targets, weights, *state, chunk.layout.handle, call.ignore_index, call.backend, need
    )
    if seen is not None:
        seen.append(signed_probabilities(batch))
    return losses, left


def _gradient(logits: Tensor, chunk: Chunk, call: Call, upstream: Tensor, left: Tensor) -> Tensor:
    """Return the gradient of a chunk's logits, in their dtype."""
    targets, handle = call.targets[:, chunk.tasks], chunk.layout.handle
    if _ops.recomputes(call.backend):
        return _ops.recomputed_gradient(  # type: ignore[no-any-return]
            left, logits, targets, upstream, None, handle, call.ignore_index, call.backend
        )
    _, gradient = _ops.multitask_cross_entropy(
        logits, targets, upstream, None, None, None, None, handle, call.ignore_index, call.backend, True
    )
    return gradient.to(logits.dtype)  # type: ignore[no-any-return]


def _records(data_map: DataMap | None) -> bool:
    return data_map is not None and not in_backward()


def _record(seen: list[Tensor] | None, call: Call, data_map: DataMap | None, sample_ids: Tensor | None) -> None:
    if seen is None or data_map is None or sample_ids is None:
        return
    signed = torch.cat(seen, 1)
    valid = call.targets != call.ignore_index
    data_map.update(signed.abs(), sample_ids, correct=torch.signbit(signed), valid=valid, backend=call.backend)


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
) -> tuple[Tensor, Tensor, Tensor | None, Call]:
    """Validate what can be seen without reading values; what only the map could refuse, before anything is computed."""
    check_kind(features, "features", LOGIT_DTYPES)
    check_kind(weight, "weight", LOGIT_DTYPES)
    if bias is not None:
        check_kind(bias, "bias", LOGIT_DTYPES)
    check_kinds(features, targets, layout, ignore_index)
    if _autocasts(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check_shapes(features, weight, bias, layout)
    check_targets(targets, len(features), layout, features.device)
    if data_map is not None:
        check_map(features, layout, data_map, sample_ids)
        if features.is_meta:  # probabilities go through DataMap.update, which reads them
            raise InvalidArgumentError("data_map must be None for features on the meta device, which hold no values")
    name = choose_backend(backend, features.device)
    if data_map is not None and sample_ids is not None and not backend_named(name).defers:
        check_ids(sample_ids, data_map.num_samples)
        if not data_map.missing:
            check_complete(targets != ignore_index, layout)
    columns = _columns(max_columns, features)
    call = Call(targets, _chunks(layout, columns), ignore_index, name, torch.is_grad_enabled())
    return features, weight, bias, call


def _autocasts(device_type: str) -> bool:
    """Return whether autocast is on; torch raises for devices that do not have it, such as meta."""
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


def _columns(max_columns: int | None, features: Tensor) -> int:
    if max_columns is None:
        return max(1, _CHUNK.get(features.device.type, _CHUNK["cuda"]) // max(1, len(features)))
    if isinstance(max_columns, bool) or not isinstance(max_columns, int):
        raise InvalidTypeError(f"max_columns must be an integer; got {max_columns!r}")
    if max_columns < 1:
        raise InvalidArgumentError(f"max_columns must be at least 1; got {max_columns}")
    return max_columns


def _chunks(layout: TaskLayout, columns: int) -> tuple[Chunk, ...]:
    """Cut the tasks into chunks of at most so many columns; kept as long as the layout lives."""
    key = (layout.handle, columns)
    if key not in _chunks_of:
        cuts, offsets = [0], layout.offsets
        for t in range(1, layout.num_tasks):
            if offsets[t + 1] - offsets[cuts[-1]] > columns:
                cuts.append(t)
        ends = [*cuts[1:], layout.num_tasks]
        _chunks_of[key] = tuple(
            Chunk(slice(a, b), slice(offsets[a], offsets[b]), layout.select(range(a, b)))
            for a, b in zip(cuts, ends, strict=True)
        )
        weakref.finalize(layout, _chunks_of.pop, key, None)
    return _chunks_of[key]
