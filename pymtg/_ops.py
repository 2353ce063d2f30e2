"""The operators as ``torch.library`` knows them.

Operators may take tensors, numbers and strings only, so a layout travels as its handle and a data map as its tensors;
what they change in place is declared. Gradients are added by the ``autograd.Function`` classes in
:mod:`pymtg.functional`: torch refuses autograd formulas for operators that mutate. Those of a linear head are in
:mod:`pymtg._linear_ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pymtg._backend import backend_at_work, backend_named
from pymtg._faults import check, debugging
from pymtg._once import in_backward
from pymtg._reference import MapState
from pymtg.tasks import TaskLayout

_library = torch.library.Library("pymtg", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "multitask_cross_entropy(Tensor logits, Tensor targets, Tensor? weights, Tensor? sample_ids, Tensor(a!)? words, "
    "Tensor(b!)? counts, Tensor(c!)? rejected, int layout, int ignore_index, str backend, bool need_gradient) "
    "-> (Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    "assigned_cross_entropy(Tensor logits, Tensor targets, Tensor assignment, int layout, int ignore_index, "
    "str backend, bool need_gradient) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(  # type: ignore[no-untyped-call]
    "recomputed_gradient(Tensor left, Tensor logits, Tensor targets, Tensor upstream, Tensor? weights, int layout, "
    "int ignore_index, str backend) -> Tensor"
)
_library.define(  # type: ignore[no-untyped-call]
    "scale_gradient(Tensor gradient, Tensor upstream, int layout, str backend) -> Tensor"
)
_library.define(  # type: ignore[no-untyped-call]
    "scale_gradient_(Tensor(a!) gradient, Tensor upstream, int layout, str backend) -> ()"
)

_compiled_for: dict[int, TaskLayout] = {}


def compiled_for(handle: int) -> None:
    """Keep a layout: who asks for shapes is torch.compile, and a graph that may be called holds the handle only."""
    _compiled_for[handle] = TaskLayout.with_handle(handle)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that losses and gradients of logits of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def recomputes(backend: str) -> bool:
    """Whether a backend recomputes gradients in the backward pass."""
    return backend_named(backend).gradient is not None


def scales_in_place(backend: str) -> bool:
    """Whether a backend can scale a gradient in place."""
    return backend_named(backend).scale_gradient_ is not None


def _multitask_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    sample_ids: Tensor | None,
    words: Tensor | None,
    counts: Tensor | None,
    rejected: Tensor | None,
    layout: int,
    ignore_index: int,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    state = None
    if words is not None and counts is not None and rejected is not None and not in_backward():
        state = MapState(words, counts, rejected)
    result = backend_at_work(backend, logits.device).cross_entropy(
        logits,
        targets,
        TaskLayout.with_handle(layout),
        ignore_index=ignore_index,
        weights=weights,
        state=state,
        sample_ids=sample_ids,
        need_gradient=need_gradient,
    )
    if debugging():
        check(logits.device)
    return result


def _multitask_cross_entropy_shapes(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    sample_ids: Tensor | None,
    words: Tensor | None,
    counts: Tensor | None,
    rejected: Tensor | None,
    layout: int,
    ignore_index: int,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    compiled_for(layout)
    dtype = arithmetic_dtype(logits.dtype)
    left = (targets.shape[1],) if recomputes(backend) else tuple(logits.shape)
    shape = left if need_gradient else (0,)
    return logits.new_empty(targets.shape[1], dtype=dtype), logits.new_empty(shape, dtype=dtype)


def _assigned_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: int,
    ignore_index: int,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    result = backend_at_work(backend, logits.device).assigned_cross_entropy(
        logits,
        targets,
        assignment,
        TaskLayout.with_handle(layout),
        ignore_index=ignore_index,
        need_gradient=need_gradient,
    )
    if debugging():
        check(logits.device)
    return result


def _assigned_cross_entropy_shapes(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: int,
    ignore_index: int,
    backend: str,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compiled_for(layout)
    dtype = arithmetic_dtype(logits.dtype)
    heads, tasks = logits.shape[0], targets.shape[1]
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((tasks, heads), dtype=dtype),
        logits.new_empty(tuple(logits.shape) if need_gradient else (0,), dtype=dtype),
        logits.new_empty(tuple(assignment.shape) if assignment.dim() == 3 else (0,), dtype=dtype),
    )


def _recomputed_gradient(
    left: Tensor,
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    weights: Tensor | None,
    layout: int,
    ignore_index: int,
    backend: str,
) -> Tensor:
    gradient = backend_named(backend).gradient
    assert gradient is not None
    return gradient(left, logits, targets, upstream, weights, TaskLayout.with_handle(layout), ignore_index=ignore_index)


def _recomputed_gradient_shapes(
    left: Tensor,
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    weights: Tensor | None,
    layout: int,
    ignore_index: int,
    backend: str,
) -> Tensor:
    compiled_for(layout)
    return logits.new_empty(tuple(logits.shape))


def _scale_gradient(gradient: Tensor, upstream: Tensor, layout: int, backend: str) -> Tensor:
    return backend_named(backend).scale_gradient(gradient, upstream, TaskLayout.with_handle(layout))


def _scale_gradient_shapes(gradient: Tensor, upstream: Tensor, layout: int, backend: str) -> Tensor:
    return torch.empty_like(gradient)


def _scale_gradient_(gradient: Tensor, upstream: Tensor, layout: int, backend: str) -> None:
    scale = backend_named(backend).scale_gradient_
    assert scale is not None
    scale(gradient, upstream, TaskLayout.with_handle(layout))


_library.impl("multitask_cross_entropy", _multitask_cross_entropy, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("assigned_cross_entropy", _assigned_cross_entropy, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("recomputed_gradient", _recomputed_gradient, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("scale_gradient", _scale_gradient, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("scale_gradient_", _scale_gradient_, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("pymtg::multitask_cross_entropy", _multitask_cross_entropy_shapes, lib=_library)
torch.library.register_fake("pymtg::assigned_cross_entropy", _assigned_cross_entropy_shapes, lib=_library)
torch.library.register_fake("pymtg::recomputed_gradient", _recomputed_gradient_shapes, lib=_library)
torch.library.register_fake("pymtg::scale_gradient", _scale_gradient_shapes, lib=_library)

multitask_cross_entropy = torch.ops.pymtg.multitask_cross_entropy.default
assigned_cross_entropy = torch.ops.pymtg.assigned_cross_entropy.default
recomputed_gradient = torch.ops.pymtg.recomputed_gradient.default
scale_gradient = torch.ops.pymtg.scale_gradient.default
scale_gradient_ = torch.ops.pymtg.scale_gradient_.default
