"""A backend's losses and gradient held to one task at a time in float64."""

from __future__ import annotations

import pytest
import torch
from _cases import Answer, Case, task_by_task
from _settings import TRITON_INTERPRETED
from torch import Tensor

from pymtg.functional import multitask_cross_entropy

# What a backend may be off beyond plain torch's own error in the same dtype, in units in the last place of the
# largest number that went into the result.
# Triton's interpreter cuts bfloat16 off where the compiler rounds.
MARGIN = {torch.float32: 8, torch.float64: 8, torch.float16: 0.6, torch.bfloat16: 1.1 if TRITON_INTERPRETED else 0.6}


def run(case: Case, backend: str) -> tuple[Tensor, Tensor]:
    """Return the losses, and the gradient of their sum with the case's upstream gradient."""
    losses = multitask_cross_entropy(
        case.logits, case.targets, case.layout, ignore_index=case.ignore_index, backend=backend
    )
    (gradient,) = torch.autograd.grad((losses * case.upstream).sum(), case.logits)
    return losses.detach(), gradient


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_within(got: Tensor, plain: Tensor, truth: Tensor, margin: Tensor, case: Case) -> None:
    error, own = (got.double() - truth).abs(), (plain.double() - truth).abs()
    excess = (error - own - margin).nan_to_num(nan=torch.inf)
    if bool((excess > 0).any()):
        pytest.fail(f"off by {error.max():.3g}, plain torch by {own.max():.3g}: {case}", pytrace=False)


def largest_factors(case: Case, truth: Answer) -> Tensor:
    """Per column, what its probabilities are multiplied by in the gradient: at most this."""
    layout, count = case.layout, truth.valid.sum(0).clamp(min=1)
    heaviest = torch.ones(layout.num_tasks, dtype=torch.float64)
    for t in range(layout.num_tasks):
        one = None if layout.pos_weight is None else layout.pos_weight[t]
        many = None if layout.class_weights is None else layout.class_weights[t]
        heaviest[t] = max(1.0, one or 0.0, *(many or ()))
    factors = case.upstream.double().abs() * heaviest / count
    return factors.repeat_interleave(torch.tensor(layout.num_classes))


def check(case: Case, backend: str, device: torch.device | str = "cpu") -> None:
    """Hold a backend, run on `device`, to the truth and to plain torch in the same dtype."""
    dtype = case.logits.dtype
    losses, gradient = (result.cpu() for result in run(case.to(device), backend))
    assert losses.dtype == wide(dtype)
    assert losses.shape == (case.layout.num_tasks,)
    assert gradient.dtype == dtype
    assert gradient.shape == case.logits.shape
    truth, plain = task_by_task(case), task_by_task(case, wide(dtype))

    unit = torch.finfo(wide(dtype)).eps
    magnitude = 1 + case.logits.detach().double().abs().amax() if case.logits.numel() else torch.tensor(1.0)
    factors = largest_factors(case, truth)
    per_task = torch.stack([part.amax() for part in factors.split(case.layout.num_classes)])
    heaviest = per_task / case.upstream.double().abs().clamp(min=1e-30) * truth.valid.sum(0).clamp(min=1)
    assert_within(losses, plain.losses, truth.losses, MARGIN[wide(dtype)] * unit * magnitude * heaviest, case)

    # Where one class outweighs thousands, each of them is rounded away from the same sum: an error that grows with
    # their number. In float64 the reference has one running sum; in float32 it and C++ do better.
    spread = max(case.layout.num_classes) / (8 if wide(dtype) == torch.float64 else 64)
    margin = (MARGIN[wide(dtype)] + spread) * unit * factors.expand_as(truth.gradient)
    if dtype != wide(dtype):  # the gradient is rounded to the logits' dtype; subnormal halves lie evenly
        finfo = torch.finfo(dtype)
        margin = margin + MARGIN[dtype] * (finfo.eps * truth.gradient.abs() + finfo.eps * finfo.tiny)
    assert_within(gradient, plain.gradient.to(dtype), truth.gradient, margin, case)
