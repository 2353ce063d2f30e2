"""Tensors on a device that are made in one call and kept for later ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Made = TypeVar("Made")


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
