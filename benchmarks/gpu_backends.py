"""Which backend serves which shape best on a GPU: what the table in ``pymtg/_dispatch.py`` is decided by.

Every backend that serves the device runs the same step (forward, backward, recording), in turn; plain torch only where
it is quick. ``results/gpu_backends.json``.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
from _gpu import Run, medians, ratio
from gpu_loss import Step

from pymtg import DataMap, MultiTaskLoss, TaskLayout

GRID = {
    "rows": (64, 1_024, 16_384),
    "tasks": (16, 256, 4_096),
    "classes": (1, 2, 10, 100),
    "dtype": (torch.float32, torch.bfloat16),
}
TINY = {"rows": (8,), "tasks": (3,), "classes": (1, 4), "dtype": (torch.float32,)}
FEWEST, MOST = 2**12, 2**27  # logits of a shape


Shape = tuple[int, int, int, torch.dtype]


def shapes(dry: bool) -> list[Shape]:
    """Return all shapes, mixed: a run that is cut short has seen some of every kind."""
    product = list(itertools.product(*(TINY if dry else GRID).values()))
    chosen = [shape for shape in product if dry or FEWEST <= shape[0] * shape[1] * shape[2] <= MOST]
    random.Random(0).shuffle(chosen)
    return chosen


def measure(run: Run, shape: Shape) -> dict[str, Any]:
    rows, tasks, classes, dtype = shape
    layout = TaskLayout([f"t{t}" for t in range(tasks)], [classes] * tasks)
    logits = torch.randn(rows, layout.num_logits, device=run.device, dtype=dtype)
    targets = torch.randint(max(classes, 2), (rows, tasks), device=run.device)
    ids = torch.randperm(rows, device=run.device)
    small = logits.numel() < 2**22 and not run.warm
    steps = {}
    for name in run.backends():
        if name == "reference" and not small:
            continue
        loss = MultiTaskLoss(layout, DataMap(rows, layout, device=run.device), backend=name)
        steps[name] = Step(loss, logits, targets, [ids])
    seconds = run.paired(dict(steps), most_seconds=1.0)
    found = medians(seconds)
    fastest = min(found, key=found.__getitem__)
    ahead = {name: ratio(seconds[fastest], seconds[name]) for name in steps if name != fastest}
    point = {"rows": rows, "tasks": tasks, "classes": classes, "dtype": str(dtype), "seconds": found}
    return {**point, "fastest": fastest, "ahead_of": ahead}


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("backends", __doc__ or "", arguments)
    for shape in run.mine(shapes(run.dry)):
        run.attempt(str(shape), lambda shape=shape: measure(run, shape))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
