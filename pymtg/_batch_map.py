"""What a loss records into: a data map's tensors, or a map of one batch, from which gold probabilities are had.

After one observation the mean that a map holds is the probability, to within 7e-8. So a loss that records into a map
with a sample per row of the batch gives ``[B, T]`` probabilities in the same pass, whatever its backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pymtg._map_state import empty_state
from pymtg._reference import MapState
from pymtg._words import unpack_right, unpack_values

if TYPE_CHECKING:
    from pymtg.datamap import DataMap


def batch_map(rows: int, tasks: int, device: torch.device, *, missing: bool) -> MapState:
    """Return an empty map with a sample per row of a batch."""
    return empty_state(rows, tasks, device, missing=missing)


def signed_probabilities(batch: MapState) -> Tensor:
    """Return what was recorded, float32 ``[B, T]``: the sign bit where right, NaN where nothing was recorded."""
    seen = batch.counts > 0
    p = torch.where(seen if batch.missing else seen[:, None], unpack_values(batch.words)[0], torch.nan)
    return torch.where(unpack_right(batch.words) > 0, -p, p)


def begun(
    data_map: DataMap | None, sample_ids: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the tensors that an operator records into, and at which ids; Nones without a data map."""
    if data_map is None or sample_ids is None:
        return None, None, None, None
    state, ids = data_map._begin(sample_ids)
    return *state, ids


def ended(
    data_map: DataMap | None,
    state: tuple[Tensor | None, ...],
    targets: Tensor,
    ignore_index: int,
    sample_ids: Tensor | None,
) -> None:
    """Have a map whose state is elsewhere take the batch there."""
    if data_map is None or data_map.storage is None or sample_ids is None:
        return
    words, counts, rejected = state
    assert words is not None
    assert counts is not None
    assert rejected is not None
    data_map._end(MapState(words, counts, rejected), targets, ignore_index, sample_ids)
