"""Tensors on a device that are made in one call and kept for later ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

_in_graphs: list[Tensor] = []


def lasting(make: Callable[[], Made], device: torch.device) -> Made:
    """Return what `make` returns: tensors for later calls too, whatever modes this call runs in, on any stream.

    ``torch.compile(mode="reduce-overhead")`` runs a step with the memory of its graph, which it uses again. On a GPU
    the tensors are therefore made by a thread of their own, on the default stream, and filled from the host, which
    waits: they are complete before any stream reads them.
    """
    if device.type == "cuda":
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make).result()
    with torch.inference_mode(False):
        return make()


class Lasting:
    """Tensors on a device that kernels read as long as what they belong to lives, which may end at any time.

    Their memory must not be used again before those kernels are through: torch knows of the default stream alone, on
    which the tensors were made. A CUDA graph that reads them may be replayed at any time: what is met in a capture
    stays for good.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: list[Tensor] = []
        self._streams: set[int] = set()
        self._in_graph = False

    def keep(self, *tensors: Tensor | None) -> None:
        """Take tensors in, but for None."""
        self._tensors += [tensor for tensor in tensors if tensor is not None]
        self._streams.clear()
        self._in_graph = False

    def about_to_be_read(self) -> None:
        """Note that a kernel on the current stream is about to read them."""
        if self._device.type != "cuda":
            return
        if torch.cuda.is_current_stream_capturing():
            if not self._in_graph:
                _in_graphs.extend(self._tensors)
                self._in_graph = True
            return
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream not in self._streams:
            self._streams.add(stream.cuda_stream)
            for tensor in self._tensors:
                tensor.record_stream(stream)
