"""Copies of networks that have been trained."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["copy_of"]

M = TypeVar("M", bound=nn.Module)


def copy_of(module: M, copied: dict[int, Any] | None = None) -> M:
    """Return a deep copy; `copied`, handed from call to call, keeps shared what the parts share.

    Of the tensors that a forward pass left in attributes (the last activations, an auxiliary loss, the weight of
    ``torch.nn.utils.spectral_norm``) the values are copied: torch copies none that is part of a graph.
    """
    copied = {} if copied is None else copied
    for layer in module.modules():
        for value in (*vars(layer).values(), *layer._buffers.values()):
            if isinstance(value, Tensor) and not value.is_leaf and id(value) not in copied:
                copied[id(value)] = value.detach().clone()
    return copy.deepcopy(module, copied)
