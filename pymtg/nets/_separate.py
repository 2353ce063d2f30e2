"""K branches run one by one, whatever they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pymtg.errors import InvalidTypeError
from pymtg.nets._copying import copy_of
from pymtg.nets._slicing import forget


def own_copy(branch: nn.Module, inputs: Tensor) -> Tensor:
    """Return the inputs, copied where a layer works in place: it might be the first, and the next branch reads them."""
    return inputs.clone() if any(getattr(layer, "inplace", False) for layer in branch.modules()) else inputs


class SeparateBranches(nn.Module):
    """Branches as they are, run one after the other.

    Parameters
    ----------
    modules
        K modules from ``[B, ...]`` to features of one shape.
    fanned
        Whether the input comes as K copies ``[K, B, ...]`` (whose gradients are told apart) or as one ``[B, ...]``.
    """

    def __init__(self, modules: Sequence[nn.Module], fanned: bool = False) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)
        self.fanned = fanned

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features ``[K, B, ...]``."""
        copies = inputs.unbind() if self.fanned else [inputs] * len(self.each)
        features = [branch(own_copy(branch, x)) for branch, x in zip(self.each, copies, strict=True)]
        for one in features:
            if not isinstance(one, Tensor):
                raise InvalidTypeError(f"branches must return a tensor of features; got {type(one).__name__}")
        return torch.stack(features)

    def module(self, k: int, copied: dict[int, Any] | None = None) -> nn.Module:
        """Return a copy of branch k; `copied`, handed from call to call, keeps shared what branches share."""
        return copy_of(self.each[k], copied)

    def load(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Set the weights and buffers of branch k."""
        self.each[k].load_state_dict(state)

    def drop(self, keep: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the branches at these positions; an optimizer forgets the others' parameters."""
        before = set(self.parameters())
        self.each = nn.ModuleList(self.each[k] for k in keep)
        forget(before - set(self.parameters()), optimizer)
