"""Branches taken out of stacked parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def slice_stacks(module: nn.Module, keep: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
    """Keep some entries of the first dimension of every parameter and buffer of a module, and of their state."""
    at: dict[torch.device, Tensor] = {}
    for own in module.modules():
        for name, parameter in own._parameters.items():
            if parameter is not None:
                index = at.setdefault(parameter.device, torch.tensor(keep, device=parameter.device))
                own._parameters[name] = _sliced(parameter, index)
                if optimizer is not None:
                    _replace(optimizer, parameter, own._parameters[name], index)
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


def _sliced(parameter: nn.Parameter, index: Tensor) -> nn.Parameter:
    fresh = nn.Parameter(parameter.detach()[index], parameter.requires_grad)
    fresh.grad = None if parameter.grad is None else parameter.grad[index]
    return fresh


def _replace(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: Any, index: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            name: value[index] if isinstance(value, Tensor) and value.shape == old.shape else value
            for name, value in state.items()
        }
