"""How many registers the Triton loss kernel should be given: its time by the limit, ``results/gpu_registers.json``.

Fewer registers are more programs at a time, whose loads keep the memory busy, and at some point spilled values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _gpu import Run, medians

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy

LIMITS = (None, 168, 128, 96)
SHAPES = {
    "1000 x 10": (8_192, [10] * 1000, torch.float32),
    "1000 x 10, bfloat16": (8_192, [10] * 1000, torch.bfloat16),
    "1000 x 1": (32_768, [1] * 1000, torch.float32),
    "100 x 100": (8_192, [100] * 100, torch.float32),
}
TINY = {"4 x 3": (16, [3] * 4, torch.float32)}


def measure(run: Run, rows: int, classes: list[int], dtype: torch.dtype) -> dict[str, Any]:
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    logits = torch.randn(rows, layout.num_logits, device=run.device, dtype=dtype)
    targets = torch.randint(2, (rows, len(classes)), device=run.device)
    ids = torch.randperm(rows, device=run.device)
    data_map = DataMap(rows, layout, device=run.device)

    def limited(limit: int | None) -> Callable[[], object]:
        def call() -> torch.Tensor:
            if not run.dry:  # Triton is there
                from pymtg.kernels.triton import cross_entropy as kernels

                kernels.LOSS_REGISTERS = limit
            options: dict[str, Any] = {} if run.dry else {"backend": "triton"}
            return multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, **options)

        return call

    seconds = medians(run.paired({str(limit): limited(limit) for limit in LIMITS}, most_seconds=2))
    point = {"rows": rows, "tasks": len(classes), "logits": layout.num_logits, "dtype": str(dtype)}
    return {**point, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("registers", __doc__ or "", arguments)
    for name, shape in run.mine(list((TINY if run.dry else SHAPES).items())):
        run.attempt(name, lambda shape=shape: measure(run, *shape))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
