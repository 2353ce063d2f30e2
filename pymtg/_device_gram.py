"""Gram matrices accumulated where the slabs are, in plain torch: for data maps on a GPU.

As in :mod:`pymtg._gram`, features are centred over the tasks in float64 before they are multiplied, and products are
summed in float64; float32 products would lose nearly identical tasks among rounding errors
(``benchmarks/results/device_gram.json``).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def device_gram(num_tasks: int, slabs: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return the centred Gram matrix, float64 ``[T, T]`` on `device`, of features ``[rows, T]`` that are there."""
    gram = torch.zeros((num_tasks, num_tasks), dtype=torch.float64, device=device)
    for slab in slabs:
        centred = slab.double()
        centred -= centred.mean(1, keepdim=True)
        gram.addmm_(centred.T, centred)
    return (gram + gram.T) / 2  # a product of a matrix with itself need not be symmetric to the last bit
