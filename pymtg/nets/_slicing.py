"""Branches taken out of stacked parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError


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
    """Return a new parameter with some entries of a dimension; in an optimizer it takes the old one's place.

    State with as many entries in that dimension is cut, too; InvalidArgumentError as :func:`check_states`.
    """
    check_states([parameter], optimizer, dim)
    fresh = nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad)
    fresh.grad = None if parameter.grad is None else parameter.grad.index_select(dim, index)
    if optimizer is None:
        return fresh
    for group in optimizer.param_groups:
        group["params"] = [fresh if p is parameter else p for p in group["params"]]
    if parameter in optimizer.state:
        optimizer.state[fresh] = {
            name: value.index_select(dim, index) if _goes_by(value, parameter, dim) else value
            for name, value in optimizer.state.pop(parameter).items()
        }
    return fresh


def check_states(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer | None, dim: int = 0) -> None:
    """Raise InvalidArgumentError if an optimizer holds state of these parameters that cannot be cut along `dim`.

    That is any tensor but those with as many entries along `dim` as the parameter has, numbers, and statistics over all
    of that dimension (its size is 1 then); and any collection.
    """
    states: Mapping[Tensor, Mapping[str, Any]] = {} if optimizer is None else optimizer.state
    for parameter in parameters:
        for name, value in states[parameter].items() if parameter in states else ():
            if not (_goes_by(value, parameter, dim) or _goes_for_all(value, parameter, dim)):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InvalidArgumentError(
                    f"optimizer must hold state that can be cut to the branches that stay; its {name!r} of a parameter "
                    f"{list(parameter.shape)} is {got}"
                )


def _goes_by(value: Any, parameter: nn.Parameter, dim: int) -> TypeGuard[Tensor]:
    """Tell whether a piece of state has an entry for every entry of a parameter along `dim`."""
    return isinstance(value, Tensor) and value.ndim > dim and value.shape[dim] == parameter.shape[dim]


def _goes_for_all(value: Any, parameter: nn.Parameter, dim: int) -> bool:
    """Tell whether a piece of state is one for all entries along `dim`."""
    if isinstance(value, Tensor):
        return value.numel() == 1 or (value.ndim == parameter.ndim and value.shape[dim] == 1)
    return not isinstance(value, (Mapping, Sequence)) or isinstance(value, str)
