"""A step's time from 10 to 10,000 tasks at a constant number of logits: ``results/gpu_tasks.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from _gpu import Run, medians
from gpu_loss import Step

from pymtg import DataMap, MultiTaskLoss, TaskLayout

LOGITS = 2**26  # in all; 256 MiB in float32
CLASSES = 10


def measure(run: Run, backend: str) -> dict[str, Any]:
    total = 4_000 if run.dry else LOGITS
    steps = {}
    for tasks in (4, 40) if run.dry else (10, 100, 1_000, 10_000):
        layout = TaskLayout([f"t{t}" for t in range(tasks)], [CLASSES] * tasks)
        rows = total // layout.num_logits
        data_map = DataMap(rows, layout, device=run.device)
        ids = torch.randperm(rows, device=run.device)
        targets = torch.randint(CLASSES, (rows, tasks), device=run.device, dtype=torch.int32)
        logits = torch.randn(rows, layout.num_logits, device=run.device)
        steps[f"{tasks}"] = Step(MultiTaskLoss(layout, data_map, backend=backend), logits, targets, [ids])
        steps[f"{tasks} without map"] = Step(MultiTaskLoss(layout, backend=backend), logits, targets, None)
    found = medians(run.paired(dict(steps)))
    point: dict[str, Any] = {"backend": backend, "logits": total, "classes": CLASSES}
    for suffix, key in (("", ""), (" without map", "_without_map")):
        # Few tasks are many rows, whose sample ids have to be matched: that is the map's part.
        seconds = {name.split()[0]: one for name, one in found.items() if name.endswith("map") == bool(suffix)}
        point[f"seconds{key}"] = seconds
        point[f"slowest_over_fastest{key}"] = max(seconds.values()) / min(seconds.values())
    return point


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("tasks", __doc__ or "", arguments)
    for backend in run.kernels():
        run.attempt(backend, lambda backend=backend: measure(run, backend))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
