"""The fused linear head against logits that are materialised: peak memory and time, ``results/gpu_linear.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from _gpu import Run, medians, ratio
from torch import Tensor

from pymtg import TaskLayout, functional

Results = tuple[Tensor, ...]
ROWS, FEATURES, TASKS, CLASSES = 4_096, 1_024, 10_000, 10


def measure(run: Run, dtype: torch.dtype, backend: str) -> dict[str, Any]:
    rows, width, tasks, classes = (8, 6, 5, 3) if run.dry else (ROWS, FEATURES, TASKS, CLASSES)
    layout = TaskLayout([f"t{t}" for t in range(tasks)], [classes] * tasks)
    features = torch.randn(rows, width, device=run.device, dtype=dtype).requires_grad_()
    weight = (torch.randn(layout.num_logits, width, device=run.device) / width**0.5).to(dtype).requires_grad_()
    bias = torch.zeros(layout.num_logits, device=run.device, dtype=dtype).requires_grad_()
    targets = torch.randint(classes, (rows, tasks), device=run.device)
    forms = forms_of((features, weight, bias), targets, layout, backend)
    check_answers(forms, 1e-3 if dtype == torch.float32 else 5e-2)
    seconds = run.paired(forms)
    point = {
        "backend": backend,
        "rows": rows,
        "features": width,
        "tasks": tasks,
        "classes": classes,
        "dtype": str(dtype),
    }
    over = {name: 1 / ratio(seconds[name], seconds["materialised"]) for name in forms}
    peaks = {name: run.peak_mb(call) for name, call in forms.items()}
    return {**point, "seconds": medians(seconds), "peak_mb": peaks, "over_materialised": over}


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("linear", __doc__ or "", arguments)
    for dtype in (torch.float32,) if run.dry else (torch.bfloat16, torch.float32):
        for backend in run.kernels():
            run.attempt(f"{dtype}, {backend}", lambda dtype=dtype, backend=backend: measure(run, dtype, backend))
    return run.status()


def forms_of(
    leaves: tuple[Tensor, ...], targets: Tensor, layout: TaskLayout, backend: str
) -> dict[str, Callable[[], Results]]:
    """Forward and backward of each form: the gradients of all leaves, with losses that are weighted equally."""

    def materialised() -> Results:
        total, _ = functional.weighted_multitask_cross_entropy(F.linear(*leaves), targets, layout, backend=backend)
        return torch.autograd.grad(total, leaves)

    def fused() -> Results:
        losses = functional.linear_multitask_cross_entropy(*leaves, targets, layout, backend=backend)
        return torch.autograd.grad(losses.sum(), leaves)

    def fused_total() -> Results:
        total, _ = functional.weighted_linear_multitask_cross_entropy(*leaves, targets, layout, backend=backend)
        return torch.autograd.grad(total, leaves)

    return {"materialised": materialised, "losses": fused, "weighted total": fused_total}


def check_answers(forms: dict[str, Callable[[], Results]], tolerance: float) -> None:
    expected = forms["materialised"]()
    for name, form in forms.items():
        for ours, theirs in zip(form(), expected, strict=True):
            error = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-20)
            assert float(error) < tolerance, f"{name} is off by {float(error):.3g}"


if __name__ == "__main__":
    sys.exit(main())
