"""A linear head and its loss as operators: loops over chunks of its logits, which no compiler looks into.

As in :mod:`pymtg._ops` a layout travels as its handle and a data map as its tensors. The ``autograd.Function`` classes
around them are in :mod:`pymtg._linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pymtg._linear_chunks import Gradients, Head
from pymtg._ops import arithmetic_dtype, compiled_for, recomputes

_HEAD = "Tensor features, Tensor weight, Tensor? bias, Tensor targets"
_MAP = "Tensor? sample_ids, Tensor(a!)? words, Tensor(b!)? counts, Tensor(c!)? rejected"
_REST = "int layout, int ignore_index, int? max_columns, str backend"
_NEEDED = "bool of_features, bool of_weight, bool of_bias"
_library = torch.library.Library("pymtg", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"linear_cross_entropy({_HEAD}, {_MAP}, {_REST}, bool need_gradient) -> (Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    f"linear_cross_entropy_gradient(Tensor left, {_HEAD}, Tensor upstream, {_REST}, {_NEEDED}) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    f"linear_cross_entropy_total({_HEAD}, Tensor? task_weights, {_MAP}, {_REST}, {_NEEDED}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _linear_cross_entropy(
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
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    head = Head(features, weight, bias, targets, layout, ignore_index, max_columns, backend)
    head.begin(sample_ids, words, counts, rejected)
    dtype, tasks = arithmetic_dtype(features.dtype), targets.shape[1]
    need_left = need_gradient and head.backend.gradient is not None
    losses, left = features.new_empty(tasks, dtype=dtype), features.new_empty(tasks if need_left else 0, dtype=dtype)
    for chunk in head.chunks:
        losses[chunk.tasks], kept = head.losses(head.logits(chunk), chunk, None, need_left)
        if need_left:
            left[chunk.tasks] = kept
    head.end(losses)
    return losses, left


def _linear_cross_entropy_shapes(
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
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    compiled_for(layout)
    dtype, tasks = arithmetic_dtype(features.dtype), targets.shape[1]
    left = tasks if need_gradient and recomputes(backend) else 0
    return features.new_empty(tasks, dtype=dtype), features.new_empty(left, dtype=dtype)


def _linear_cross_entropy_gradient(
    left: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    upstream: Tensor,
    layout: int,
    ignore_index: int,
    max_columns: int | None,
    backend: str,
    of_features: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(features, weight, bias, targets, layout, ignore_index, max_columns, backend)
    sums = Gradients(features, weight, bias, (of_features, of_weight, of_bias))
    for chunk in head.chunks:
        above = head.part(upstream, chunk.tasks).contiguous()
        sums.add(chunk, head.gradient(head.logits(chunk), chunk, above, head.part(left, chunk.tasks)))
    return sums.results()


def _linear_cross_entropy_gradient_shapes(
    left: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    upstream: Tensor,
    layout: int,
    ignore_index: int,
    max_columns: int | None,
    backend: str,
    of_features: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    compiled_for(layout)
    return _gradient_shapes(features, weight, bias, (of_features, of_weight, of_bias))


def _linear_cross_entropy_total(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(features, weight, bias, targets, layout, ignore_index, max_columns, backend)
    head.begin(sample_ids, words, counts, rejected)
    dtype = arithmetic_dtype(features.dtype)
    weights = features.new_ones(targets.shape[1], dtype=dtype) if task_weights is None else task_weights.to(dtype)
    sums = Gradients(features, weight, bias, (of_features, of_weight, of_bias))
    losses = features.new_empty(targets.shape[1], dtype=dtype)
    for chunk in head.chunks:
        logits, of_chunk = head.logits(chunk), head.part(weights, chunk.tasks).contiguous()
        losses[chunk.tasks], left = head.losses(logits, chunk, of_chunk, sums.needed)
        if sums.needed:
            if head.backend.gradient is not None:
                left = head.gradient(logits, chunk, of_chunk, left)
            sums.add(chunk, left.to(logits.dtype))
    head.end(losses)
    return torch.dot(losses, weights), losses, *sums.results()


def _linear_cross_entropy_total_shapes(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compiled_for(layout)
    dtype = arithmetic_dtype(features.dtype)
    losses = features.new_empty(targets.shape[1], dtype=dtype)
    gradients = _gradient_shapes(features, weight, bias, (of_features, of_weight, of_bias))
    return features.new_empty((), dtype=dtype), losses, *gradients


def _gradient_shapes(
    features: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        features.new_empty(tuple(features.shape) if needed[0] else (0,)),
        features.new_empty(tuple(weight.shape) if needed[1] else (0,)),
        features.new_empty((0,) if bias is None or not needed[2] else tuple(bias.shape)),
    )


_library.impl("linear_cross_entropy", _linear_cross_entropy, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("linear_cross_entropy_gradient", _linear_cross_entropy_gradient, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("linear_cross_entropy_total", _linear_cross_entropy_total, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("pymtg::linear_cross_entropy", _linear_cross_entropy_shapes, lib=_library)
torch.library.register_fake("pymtg::linear_cross_entropy_gradient", _linear_cross_entropy_gradient_shapes, lib=_library)
torch.library.register_fake("pymtg::linear_cross_entropy_total", _linear_cross_entropy_total_shapes, lib=_library)

linear_cross_entropy = torch.ops.pymtg.linear_cross_entropy.default
linear_cross_entropy_gradient = torch.ops.pymtg.linear_cross_entropy_gradient.default
linear_cross_entropy_total = torch.ops.pymtg.linear_cross_entropy_total.default
