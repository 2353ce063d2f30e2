"""The C++ backend: hands tensors to ``pymtg._core`` by address and turns what it reports into exceptions."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from pymtg import _core, _reference
from pymtg._reference import MapState
from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout

try:
    _core.isa()  # reads the environment variable once
except ValueError as error:
    raise InvalidArgumentError(f"environment variable {error}") from None

_TARGET_TYPES = {torch.uint8: 0, torch.bool: 0, torch.int32: 1, torch.int64: 2}
_plan_of_handle: dict[int, _core.LayoutPlan] = {}


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    weights: Tensor | None = None,
    state: MapState | None = None,
    sample_ids: Tensor | None = None,
    need_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """See :func:`pymtg._reference.cross_entropy`."""
    double = logits.dtype == torch.float64
    x = logits if double else logits.float()
    x, y = _adjacent(x), _readable(targets)
    rows = x.shape[0]
    losses = x.new_empty(layout.num_tasks)
    gradient = x.new_empty((rows, layout.num_logits) if need_gradient else 0)
    if weights is not None:
        weights = weights.to(x.dtype).contiguous()
    if sample_ids is not None:
        sample_ids = sample_ids.long().contiguous()
    call = _core.cross_entropy_forward_double if double else _core.cross_entropy_forward_float
    outcome = call(
        _plan(layout),
        x.data_ptr(),
        rows,
        x.stride(0),
        y.data_ptr(),
        _TARGET_TYPES[y.dtype],
        y.stride(0),
        ignore_index,
        0 if weights is None else weights.data_ptr(),
        losses.data_ptr(),
        gradient.data_ptr() if need_gradient else 0,
        0 if sample_ids is None else sample_ids.data_ptr(),
        *_addresses(state),
        torch.get_num_threads(),
    )
    if outcome[0]:
        _raise(outcome, layout, state)
    return losses, gradient


def assigned_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    need_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`pymtg._reference.assigned_cross_entropy`."""
    double = logits.dtype == torch.float64
    x, y = _adjacent(logits if double else logits.float()), _readable(targets)
    shares = assignment.to(x.dtype).contiguous()
    heads, rows, columns = x.shape
    per_row = shares.dim() == 3
    total, losses = x.new_empty(()), x.new_empty((layout.num_tasks, heads))
    gradient = x.new_empty((heads, rows, columns) if need_gradient else 0)
    row_losses = x.new_empty((rows, layout.num_tasks, heads) if per_row else 0)
    call = _core.cross_entropy_heads_double if double else _core.cross_entropy_heads_float
    outcome = call(
        _plan(layout),
        x.data_ptr(),
        heads,
        x.stride(0),
        rows,
        x.stride(1),
        y.data_ptr(),
        _TARGET_TYPES[y.dtype],
        y.stride(0),
        ignore_index,
        shares.data_ptr(),
        per_row,
        total.data_ptr(),
        losses.data_ptr(),
        gradient.data_ptr() if need_gradient else 0,
        row_losses.data_ptr() if per_row else 0,
        torch.get_num_threads(),
    )
    if outcome[0]:
        _raise(outcome, layout, None)
    return total, losses, gradient, row_losses


def scale_gradient(gradient: Tensor, upstream: Tensor, layout: TaskLayout) -> Tensor:
    """See :func:`pymtg._reference.scale_gradient`."""
    out = torch.empty_like(gradient)
    upstream = upstream.to(gradient.dtype).contiguous()
    call = _core.scale_gradient_double if gradient.dtype == torch.float64 else _core.scale_gradient_float
    call(
        _plan(layout),
        gradient.data_ptr(),
        upstream.data_ptr(),
        out.data_ptr(),
        gradient.shape[0],
        torch.get_num_threads(),
    )
    return out


def record(
    state: MapState, gold: Tensor, right: Tensor, valid: Tensor, sample_ids: Tensor, refused: Tensor | None = None
) -> None:
    """See :func:`pymtg._reference.record`."""
    if refused is not None and bool(refused.any()):
        state.rejected.add_(refused.sum())
        keep = ~refused
        gold, right, valid, sample_ids = gold[keep], right[keep], valid[keep], sample_ids[keep]
    gold = gold.float().abs()  # the sign of a zero would be read as "right"
    signed = torch.where(right, -gold, gold)
    signed = torch.where(valid, signed, torch.nan).contiguous()
    sample_ids = sample_ids.long().contiguous()
    outcome = _core.record(
        signed.data_ptr(), sample_ids.data_ptr(), signed.shape[0], signed.shape[1], *_addresses(state)
    )
    if outcome[0]:
        raise _reference.id_out_of_range(outcome[1], outcome[3], state.words.shape[0])


def all_ones(values: Tensor) -> bool:
    """Whether every entry of a contiguous float32 or float64 CPU tensor is one."""
    call = _core.all_ones_double if values.dtype == torch.float64 else _core.all_ones_float
    return call(values.data_ptr(), values.numel())


def _adjacent(values: Tensor) -> Tensor:
    """Return equal values whose last dimension stands without gaps."""
    return values if values.stride(-1) == 1 or values.shape[-1] == 1 else values.contiguous()


def _readable(targets: Tensor) -> Tensor:
    return _adjacent(targets if targets.dtype in _TARGET_TYPES else targets.int())


def _addresses(state: MapState | None) -> tuple[int, int, bool, int, int]:
    if state is None:
        return 0, 0, False, 0, 0
    return (
        state.words.data_ptr(),
        state.counts.data_ptr(),
        state.missing,
        state.rejected.data_ptr(),
        state.words.shape[0],
    )


def _plan(layout: TaskLayout) -> _core.LayoutPlan:
    plan = _plan_of_handle.get(layout.handle)
    if plan is None:
        pos_weight = [] if layout.pos_weight is None else [1.0 if w is None else w for w in layout.pos_weight]
        class_weight: list[float] = []
        if layout.class_weights is not None:
            for classes, weights in zip(layout.num_classes, layout.class_weights, strict=True):
                class_weight += weights if weights is not None else (1.0,) * classes
        plan = _core.LayoutPlan(list(layout.num_classes), pos_weight, class_weight)
        _plan_of_handle[layout.handle] = plan
        weakref.finalize(layout, _plan_of_handle.pop, layout.handle, None)
    return plan


def _raise(outcome: tuple[int, int, int, int], layout: TaskLayout, state: MapState | None) -> None:
    problem, row, task, value = outcome
    if problem == 1:
        raise _reference.target_out_of_range(layout, row, task, value)
    if problem == 2:
        raise _reference.missing_label(layout, row, task)
    assert state is not None
    raise _reference.id_out_of_range(row, value, state.words.shape[0])
