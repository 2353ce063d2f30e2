"""The tensors of a data map that has seen nothing yet, and what a map may be asked for."""

from __future__ import annotations

import math
from typing import Any

import torch

from pymtg._reference import MapState
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MapMemoryError
from pymtg.tasks import TaskLayout

__all__ = ["allocated_state", "check_options", "empty_state"]


def empty_state(num_samples: int, num_tasks: int, device: torch.device, *, missing: bool) -> MapState:
    """Return a map's tensors, all zeros."""
    counts, count_type = _counts(num_samples, num_tasks, missing)
    return MapState(
        torch.zeros((num_samples, 2, num_tasks), dtype=torch.int32, device=device),
        torch.zeros(counts, dtype=count_type, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )


def allocated_state(num_samples: int, num_tasks: int, device: torch.device, *, missing: bool) -> MapState:
    """Return the same for a map of all samples; MapMemoryError where there is no memory for them."""
    counts, count_type = _counts(num_samples, num_tasks, missing)
    needed = 8 * num_samples * num_tasks + count_type.itemsize * math.prod(counts) + 8
    refusal = MapMemoryError(
        f"num_samples must be so few that the map fits the memory of {device}; "
        f"got {num_samples}, which with {num_tasks} tasks need {needed:,} bytes"
    )
    if needed >= 2**63:  # torch overflows, in one of several places
        raise refusal
    try:
        return empty_state(num_samples, num_tasks, device, missing=missing)
    except torch.OutOfMemoryError:
        raise refusal from None
    except RuntimeError as error:  # the CPU's allocator has no type of its own
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise refusal from None


def check_options(num_samples: Any, layout: Any, ddof: Any, storage: Any) -> None:
    """Raise unless a new map can be of so many samples, these tasks and these options."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise InvalidTypeError(f"num_samples must be an integer; got {num_samples!r}")
    if num_samples < 1:
        raise InvalidArgumentError(f"num_samples must be at least 1; got {num_samples}")
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    if ddof not in (0, 1):
        raise InvalidArgumentError(f"ddof must be 0 or 1; got {ddof!r}")
    if storage not in (None, "cpu"):
        raise InvalidArgumentError(f"storage must be 'cpu' or None; got {storage!r}")


def _counts(num_samples: int, num_tasks: int, missing: bool) -> tuple[tuple[int, ...], torch.dtype]:
    return ((num_samples, num_tasks), torch.int16) if missing else ((num_samples,), torch.int32)
