"""Every backend that can be used here, on every device that it serves, held to plain torch in float64 and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pymtg import DataMap, TaskLayout, available_backends, check_errors
from pymtg._backend import backend_named
from pymtg.functional import multitask_cross_entropy

__all__ = ["CheckedBackend", "check_backends"]

_CLASSES = ([1] * 50, [2] * 40, [3, 1, 7, 2, 1, 300, 1200, 2, 2])
_ROWS, _SAMPLES = 67, 40
_TIMED_ROWS, _TIMED_TASKS, _TIMED_CLASSES, _ROUNDS = 1024, 100, 10, 21
# Beyond the rounding of float32 arithmetic and, for half-precision logits, of the gradient itself.
_TOLERANCE = {torch.float32: (1e-4, 1e-6), torch.bfloat16: (1e-2, 1e-5)}


@dataclass(frozen=True)
class CheckedBackend:
    """What came of one backend on one device."""

    backend: str
    device: str
    error: str | None
    """Where it fails or is off, how; None where it agrees."""
    seconds: float | None
    """Of a step, the median: loss, gradient and data map of 1,024 rows, 100 tasks of ten classes."""


def _devices() -> list[torch.device]:
    """Return the devices there are."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def check_backends() -> list[CheckedBackend]:
    """Check all there are, the one that serves a device by default among them."""
    return [
        _checked(name, device)
        for device in _devices()
        for name in available_backends()
        if backend_named(name).serves(device)
    ]


def _checked(name: str, device: torch.device) -> CheckedBackend:
    """Check one on random batches, with missing labels, repeated ids and weights, in two dtypes; then time it."""
    try:
        for classes in _CLASSES:
            for dtype in _TOLERANCE:
                _compare(name, device, classes, dtype)
        return CheckedBackend(name, str(device), None, _timed(name, device))
    except Exception as error:  # whatever it is, the next backend has its turn
        lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        return CheckedBackend(name, str(device), f"{type(error).__name__}: {lines[:300]}", None)


def _compare(name: str, device: torch.device, classes: list[int], dtype: torch.dtype) -> None:
    layout = TaskLayout(
        [f"task{t}" for t in range(len(classes))],
        classes,
        pos_weight=[2.0 if c == 1 else None for c in classes],
        class_weights=[None if c == 1 else [1.0 + i % 3 for i in range(c)] for c in classes],
    )
    logits, targets, ids = _batch(layout, _ROWS)
    logits = logits.to(dtype)
    targets[torch.rand(targets.shape) < 0.2] = -100
    upstream = torch.rand(layout.num_tasks) + 0.5
    ours, theirs = (DataMap(_SAMPLES, layout, missing=True, device=at) for at in (device, "cpu"))
    found = _step(name, device, logits, targets, ids, upstream, ours)
    expected = _step("reference", torch.device("cpu"), logits.double(), targets, ids, upstream, theirs)
    rtol, atol = _TOLERANCE[dtype]
    for what, one, other in zip(("losses", "gradient"), found, expected, strict=True):
        _hold(what, one, other, rtol, atol)
    for what in ("count", "correctness", "mean", "std"):
        _hold(f"{what} of the data map", getattr(ours, what), getattr(theirs, what), 1e-4, 2e-6)


def _hold(what: str, ours: Tensor, theirs: Tensor, rtol: float, atol: float) -> None:
    try:
        torch.testing.assert_close(ours.double().cpu(), theirs.double(), rtol=rtol, atol=atol)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def _batch(layout: TaskLayout, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor(layout.num_classes).clamp(min=2)
    targets = (torch.rand(rows, layout.num_tasks) * labels).long()
    return 2 * torch.randn(rows, layout.num_logits), targets, torch.randint(_SAMPLES, (rows,))


def _step(
    name: str,
    device: torch.device,
    logits: Tensor,
    targets: Tensor,
    ids: Tensor,
    upstream: Tensor,
    data_map: DataMap,
) -> tuple[Tensor, Tensor]:
    x = logits.to(device).requires_grad_()
    losses = multitask_cross_entropy(
        x, targets.to(device), data_map.layout, data_map=data_map, sample_ids=ids.to(device), backend=name
    )
    (gradient,) = torch.autograd.grad(losses, x, upstream.to(losses))
    check_errors()
    return losses.detach(), gradient


def _timed(name: str, device: torch.device) -> float:
    layout = TaskLayout([f"task{t}" for t in range(_TIMED_TASKS)], [_TIMED_CLASSES] * _TIMED_TASKS)
    logits, targets, _ = (tensor.to(device) for tensor in _batch(layout, _TIMED_ROWS))
    data_map, ids = DataMap(_TIMED_ROWS, layout, device=device), torch.randperm(_TIMED_ROWS).to(device)
    x, upstream = logits.requires_grad_(), torch.ones(_TIMED_TASKS, device=device)

    def step() -> None:
        losses = multitask_cross_entropy(x, targets, layout, data_map=data_map, sample_ids=ids, backend=name)
        torch.autograd.grad(losses, x, upstream)

    step()
    return statistics.median(_seconds(step, device))


def _seconds(step: Callable[[], None], device: torch.device) -> Iterator[float]:
    for _ in range(_ROUNDS):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        yield time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
