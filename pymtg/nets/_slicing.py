"""Branches taken out of stacked parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def slice_stacks(module: nn.Module, keep: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
    """Keep some entries of the first dimension of every parameter and buffer of a module, and of their state."""
    at: dict[torch.device, Tensor] = {}
    for own in module.modules():
        for name, parameter in own._parameters.items():
            if parameter is not None:
                index = at.setdefault(parameter.device, torch.tensor(keep, device=parameter.device))
                own._parameters[name] = cut(parameter, index, optimizer)
        for name, buffer in own._buffers.items():
            if buffer is not None:
                own._buffers[name] = buffer[torch.tensor(keep, device=buffer.device)]
        if isinstance(getattr(own, "branches", None), int):
            own.branches = len(keep)  # type: ignore[assignment]


def forget(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
    """Take parameters and their state out of an optimizer."""
    if optimizer is None:
        return
    gone = set(parameters)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in gone]
    for parameter in gone:
        optimizer.state.pop(parameter, None)


def cut(parameter: nn.Parameter, index: Tensor, optimizer: torch.optim.Optimizer | None, dim: int = 0) -> nn.Parameter:
    """Return a new parameter with some entries of a dimension; in an optimizer it takes the old one's place."""
    shape = parameter.shape
    fresh = nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad)
    fresh.grad = None if parameter.grad is None else parameter.grad.index_select(dim, index)
    if optimizer is None:
        return fresh
    for group in optimizer.param_groups:
        group["params"] = [fresh if p is parameter else p for p in group["params"]]
    if parameter in optimizer.state:
        optimizer.state[fresh] = {
            name: value.index_select(dim, index) if isinstance(value, Tensor) and value.shape == shape else value
            for name, value in optimizer.state.pop(parameter).items()
        }
    return fresh
