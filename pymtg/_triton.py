"""The Triton backend: plans of layouts, and tensors in the form that :mod:`pymtg.kernels.triton` takes.

Nothing here waits for the device: bad values are noted (:mod:`pymtg._faults`). Gradients are recomputed in the backward
pass (:func:`gradient`); what the forward pass leaves for it is the number of valid labels of each task.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from pymtg import _reference
from pymtg._faults import fault_buffer
from pymtg._lasting import Lasting, lasting
from pymtg._reference import MapState
from pymtg.kernels.triton import cross_entropy as kernels
from pymtg.kernels.triton.tiles import Plan, make_plan
from pymtg.tasks import TaskLayout

_plans: dict[tuple[int, torch.device], tuple[Plan, Lasting]] = {}


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
    """See :func:`pymtg._reference.cross_entropy`; in the place of the gradient what :func:`gradient` needs.

    That is the number of valid labels of each task, at least 1, ``[T]``. `weights` matter to :func:`gradient` only.
    """
    recording = None
    if state is not None:
        assert sample_ids is not None
        recording = kernels.Recording(*state, sample_ids.contiguous())
    losses, labels = kernels.cross_entropy(
        _plan(layout, logits.device),
        logits,
        targets,
        ignore_index,
        recording,
        fault_buffer(logits.device),
        layout.handle,
    )
    return losses, labels if need_gradient else labels.new_empty(0)


def gradient(
    labels: Tensor,
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    weights: Tensor | None,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Return the gradient ``[B, num_logits]`` in the logits' dtype, given what :func:`cross_entropy` left.

    `upstream` is ``[T]``, or a scalar for the sum of all losses; `weights` ``[T]`` multiply it.
    """
    plan = _plan(layout, logits.device)
    if weights is not None:
        weights = weights.contiguous()
    return kernels.gradient(plan, logits, targets, ignore_index, labels, upstream, weights)


def assigned_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    need_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`pymtg._reference.assigned_cross_entropy`: three launches a head; shares per row go there."""
    if assignment.dim() == 3:
        return _reference.assigned_cross_entropy(
            logits, targets, assignment, layout, ignore_index=ignore_index, need_gradient=need_gradient
        )
    plan, faults = _plan(layout, logits.device), fault_buffer(logits.device)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shares = assignment.to(wide)
    gradient = logits.new_empty(logits.shape if need_gradient else 0, dtype=wide)
    losses = []
    for k, head in enumerate(logits):
        loss, labels = kernels.cross_entropy(plan, head, targets, ignore_index, None, faults, layout.handle)
        losses.append(loss)
        if need_gradient:
            kernels.gradient(plan, head, targets, ignore_index, labels, shares[:, k], None, out=gradient[k])
    all_losses = torch.stack(losses, 1)
    return (shares * all_losses).sum(), all_losses, gradient, shares.new_empty(0)


def record(
    state: MapState, gold: Tensor, right: Tensor, valid: Tensor, sample_ids: Tensor, refused: Tensor | None = None
) -> None:
    """See :func:`pymtg._reference.record`; rows whose id is outside the map are left out."""
    gold = gold.float().abs()  # the sign of a zero would be read as "right"
    signed = torch.where(valid, torch.where(right, -gold, gold), torch.nan).contiguous()
    if refused is None:
        refused = torch.zeros(len(gold), dtype=torch.bool, device=gold.device)
    kernels.record(signed, refused.to(torch.uint8), kernels.Recording(*state, sample_ids.contiguous()))


def _plan(layout: TaskLayout, device: torch.device) -> Plan:
    found = _plans.get((layout.handle, device))
    if found is None:
        plan = lasting(lambda: _made(layout, device), device)
        tensors = Lasting(device)
        tensors.keep(plan.tiles, plan.offsets, plan.weights, plan.first_weight)
        found = _plans[layout.handle, device] = plan, tensors
        weakref.finalize(layout, _plans.pop, (layout.handle, device), None)
    plan, tensors = found
    tensors.about_to_be_read()
    return plan


def _made(layout: TaskLayout, device: torch.device) -> Plan:
    pos_weight = None if layout.pos_weight is None else [1.0 if w is None else w for w in layout.pos_weight]
    class_weights = None
    if layout.class_weights is not None:
        pairs = zip(layout.num_classes, layout.class_weights, strict=True)
        class_weights = [(1.0,) * classes if weights is None else weights for classes, weights in pairs]
    return make_plan(layout.num_classes, pos_weight, class_weights, device)
