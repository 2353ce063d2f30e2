"""A map of one batch: how gold probabilities are had from the fused loss on any backend.

After one observation the mean that a map holds is the probability, to within 7e-8. So a loss that records into a map
with a sample per row of the batch gives ``[B, T]`` probabilities in the same pass, whatever its backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pymtg._map_state import empty_state
from pymtg._reference import MapState
from pymtg._words import unpack_right, unpack_values


def batch_map(rows: int, tasks: int, device: torch.device, *, missing: bool) -> MapState:
    """Return an empty map with a sample per row of a batch."""
    return empty_state(rows, tasks, device, missing=missing)


def signed_probabilities(batch: MapState) -> Tensor:
    """Return what was recorded, float32 ``[B, T]``: the sign bit where right, NaN where nothing was recorded."""
    seen = batch.counts > 0
    p = torch.where(seen if batch.missing else seen[:, None], unpack_values(batch.words)[0], torch.nan)
    return torch.where(unpack_right(batch.words) > 0, -p, p)
