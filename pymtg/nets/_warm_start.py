"""Branches and heads that start from trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._separate import SeparateBranches
from pymtg.nets._stacked import StackedBranches
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout

State = Mapping[str, Tensor]


def checked_nets(nets: Any, branches: int) -> list[MultiHeadNet]:
    """Return one network per branch: one for all of them, or a sequence of K; typed errors for anything else."""
    if isinstance(nets, str) or not isinstance(nets, (nn.Module, Sequence)):
        raise InvalidTypeError(f"nets must be a MultiHeadNet or a sequence of them; got {type(nets).__name__}")
    each = [nets] * branches if isinstance(nets, nn.Module) else list(nets)
    if len(each) != branches:
        raise InvalidArgumentError(f"nets must be one network, or one per branch, {branches}; got {len(each)}")
    for net in each:
        if not isinstance(net, MultiHeadNet):
            raise InvalidTypeError(f"nets must be of type MultiHeadNet; got {type(net).__name__}")
    return [net for net in each if isinstance(net, MultiHeadNet)]


def check_heads(net: MultiHeadNet, layout: TaskLayout, features: int) -> None:
    """Raise InvalidArgumentError unless a network's heads fit those of the same tasks here."""
    if net.head.in_features != features:
        raise InvalidArgumentError(f"nets must have heads on {features} features; got {net.head.in_features}")
    for name, count in zip(net.layout.names, net.layout.num_classes, strict=True):
        if layout.num_classes[layout.index(name)] != count:
            own = layout.num_classes[layout.index(name)]
            raise InvalidArgumentError(f"nets must have {own} classes for task {name!r}, as here; got {count}")


def split_backbone(
    net: MultiHeadNet, trunk: nn.Module | None, branches: SeparateBranches | StackedBranches, k: int
) -> tuple[State | None, State]:
    """Return the states (for the trunk, for branch k) that a network's backbone holds.

    A backbone is either built as the branch is, and has nothing for the trunk, or it is ``Sequential(trunk, branch)``.
    """
    branch, backbone = branches.module(k).state_dict(), net.backbone
    if fits(backbone.state_dict(), branch):
        return None, backbone.state_dict()
    if trunk is not None and isinstance(backbone, nn.Sequential) and len(backbone) == 2:
        states = backbone[0].state_dict(), backbone[1].state_dict()
        if fits(states[0], trunk.state_dict()) and fits(states[1], branch):
            return states
    raise InvalidArgumentError(
        "nets must have backbones built as the branches are (or Sequential(trunk, branch)); "
        f"that of network {k} has other weights: {described(backbone.state_dict())} instead of {described(branch)}"
    )


def fits(state: State, other: State) -> bool:
    """Tell whether two states hold tensors of the same names and shapes."""
    return {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in other.items()}


def described(state: State, most: int = 4) -> str:
    """Name the first tensors of a state with their shapes."""
    parts = [f"{name} {tuple(t.shape)}" for name, t in list(state.items())[:most]]
    return "{" + ", ".join(parts) + (", ...}" if len(state) > most else "}")
