"""Data sets drawn by a seed: the tasks of a layout, learnable from five features."""

from __future__ import annotations

import torch

from pymtg.data import from_arrays


def drawn(layout, rows=61, seed=0, missing=False):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    scores = inputs @ torch.randn(5, layout.num_tasks, generator=generator)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    targets = (torch.sigmoid(scores) * counts).long().clamp(max=counts - 1)
    if layout.has_regression:
        chosen = torch.tensor([kind == "regression" for kind in layout.kinds])
        targets = torch.where(chosen, scores, targets.float())
    if missing:
        gap = torch.nan if targets.is_floating_point() else -100
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = gap
    return from_arrays(inputs, targets, layout)
