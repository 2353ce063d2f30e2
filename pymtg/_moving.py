"""Tensors on their way from the host's memory to a GPU, for which the host does not wait.

From pageable memory it would, for all that the stream has still to do. So they go through pinned memory, which torch
keeps, and uses again, once the copy is done; only pinning more than ever before takes time.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rows_to_device", "to_device"]


def to_device(values: Tensor, device: torch.device, *, owned: bool = False) -> Tensor:
    """Return values on a device. Their owner may change them at once, unless they are `owned`: nobody else's."""
    if not _travels(values, device):
        return values.to(device)
    if owned and values.is_pinned():
        return values.to(device, non_blocking=True)
    return _staging(values, values.shape).copy_(values).to(device, non_blocking=True)


def rows_to_device(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Return these rows of values ``[N, ...]`` on a device, without a graph; `rows` is where the values are."""
    values = values.detach()
    if not _travels(values, device):
        return values.index_select(0, rows).to(device)
    staging = _staging(values, (len(rows), *values.shape[1:]))
    return torch.index_select(values, 0, rows, out=staging).to(device, non_blocking=True)


def _travels(values: Tensor, device: torch.device) -> bool:
    """Whether values go from the host to a GPU; not in compiled code, nor in a graph, which would keep them."""
    if device.type != "cuda" or values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    plain = values.layout == torch.strided and not values.is_nested
    return plain and not torch.cuda.is_current_stream_capturing()


def _staging(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=values.dtype, pin_memory=True)
