"""The maps of several ranks become one: the only place where integrations talk between processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pymtg._reference import MapState
from pymtg.datamap import DataMap
from pymtg.hooks import RecordingError

__all__ = ["merge_over_ranks_", "num_ranks", "of_all_ranks"]


def num_ranks() -> int:
    """Return the number of processes of the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_all_ranks(value: Any) -> list[Any]:
    """Return a picklable value of every rank, in their order. Every rank has to call this."""
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def merge_over_ranks_(data_map: DataMap) -> DataMap:
    """Make the map of every rank the sum of all, exact and the same bit for bit everywhere. Returns the map.

    One rank after the other sends its map, so that a rank holds three maps at a time however many ranks there are.
    Every rank has to call this.

    Raises
    ------
    RecordingError
        On every rank, if their maps differ in samples, layout or kind.
    """
    kinds = of_all_ranks((data_map.num_samples, data_map.layout, data_map.missing, data_map.ddof))
    if any(kind != kinds[0] for kind in kinds):
        shown = [f"{samples} samples, {len(layout)} tasks" for samples, layout, *_ in kinds]
        raise RecordingError(f"all ranks must have a map of the same samples and tasks; theirs are of {shown}")
    own = MapState(*(tensor.clone() for tensor in data_map.state))
    guest = DataMap(data_map.num_samples, data_map.layout, device=data_map.device, missing=data_map.missing)
    for tensor in data_map.state:
        tensor.zero_()
    for rank in range(num_ranks()):
        for mine, theirs in zip(own, guest.state, strict=True):
            if rank == dist.get_rank():
                theirs.copy_(mine)
            dist.broadcast(theirs.view(torch.uint8), src=rank)  # bytes: not every transport has 16-bit integers
        data_map.merge_(guest)
    return data_map
