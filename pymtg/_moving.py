"""Tensors on their way from the host's memory to a GPU, which nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rows_to_device", "to_device"]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; the caller may change its own at once.

    Copied from pageable memory they would make the host wait for all that the stream has still to do. So they go
    through pinned memory, which torch keeps until the copy is done.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    if torch.cuda.is_current_stream_capturing():
        return values.to(device)  # an error of torch's: a graph would copy these values for ever
    staging = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return staging.copy_(values).to(device, non_blocking=True)


def rows_to_device(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Return these rows of values ``[N, ...]`` on a device; `rows` is where the values are."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.index_select(0, rows).to(device)
    staging = torch.empty((len(rows), *values.shape[1:]), dtype=values.dtype, pin_memory=True)
    return torch.index_select(values.detach(), 0, rows, out=staging).to(device, non_blocking=True)
