"""Copies of networks that have been trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["copy_of"]

M = TypeVar("M", bound=nn.Module)


def copy_of(module: M, copied: dict[int, Any] | None = None) -> M:
    """Return a deep copy; `copied`, handed from call to call, keeps shared what the parts share.

    Of the tensors that a forward pass left in attributes, or in lists and dictionaries there (the last activations, an
    auxiliary loss, the weight of ``torch.nn.utils.spectral_norm``) the values are copied: torch copies none that is
    part of a graph.
    """
    copied = {} if copied is None else copied
    for layer in module.modules():
        for value in _tensors(vars(layer)):  # buffers among them
            if not value.is_leaf and id(value) not in copied:
                copied[id(value)] = value.detach().clone()
    return copy.deepcopy(module, copied)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield a value if it is a tensor, or those in its lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
