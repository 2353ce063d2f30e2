"""Which backend serves which shape best on a GPU: what the table in ``pymtg/_dispatch.py`` is decided by.

Every backend that serves the device runs the same step (forward, backward, recording), in turn; plain torch only where
it is quick. ``results/gpu_backends.json``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("backends", __doc__ or "", arguments)
    wins: dict[str, int] = {}
    for rows, tasks, classes, dtype in itertools.product(*(TINY if run.dry else GRID).values()):
        if not run.dry and not FEWEST <= rows * tasks * classes <= MOST:
            continue
        layout = TaskLayout([f"t{t}" for t in range(tasks)], [classes] * tasks)
        logits = torch.randn(rows, layout.num_logits, device=run.device, dtype=dtype)
        targets = torch.randint(max(classes, 2), (rows, tasks), device=run.device)
        ids = torch.randperm(rows, device=run.device)
        names = [name for name in run.backends() if name != "reference" or logits.numel() < 2**22]
        steps = {}
        for name in names:
            loss = MultiTaskLoss(layout, DataMap(rows, layout, device=run.device), backend=name)
            steps[name] = Step(loss, logits, targets, [ids])
        seconds = run.paired(dict(steps), most_seconds=1.0)
        found = medians(seconds)
        fastest = min(found, key=found.__getitem__)
        wins[fastest] = wins.get(fastest, 0) + 1
        point = {"rows": rows, "tasks": tasks, "classes": classes, "dtype": str(dtype), "seconds": found}
        ahead = {name: ratio(seconds[fastest], seconds[name]) for name in names if name != fastest}
        run.document["wins"] = wins
        run.add({**point, "fastest": fastest, "ahead_of": ahead})
    return 0


if __name__ == "__main__":
    sys.exit(main())
