"""From what a caller gives as branches to K modules, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._copying import copy_of
from pymtg.nets.backbones import checked_size


def branch_modules(branch: Any, num_branches: int) -> list[nn.Module]:
    """Return K modules: copies of a module, a factory's, or the given ones; typed errors for anything else."""
    if isinstance(branch, nn.Module) and not isinstance(branch, nn.ModuleList):
        return [copy_of(branch) for _ in range(num_branches)]
    if isinstance(branch, (nn.ModuleList, Sequence)) and not isinstance(branch, str):
        modules = list(branch)
        if len(modules) != num_branches:
            raise InvalidArgumentError(f"branch must hold num_branches = {num_branches} modules; got {len(modules)}")
    elif callable(branch):
        modules = [branch() for _ in range(num_branches)]
    else:
        raise InvalidTypeError(
            f"branch must be a module, a factory of modules or a sequence of modules; got {type(branch).__name__}"
        )
    for k, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise InvalidTypeError(f"branch {k} must be a torch.nn.Module; got {type(module).__name__}")
        if any(module is earlier for earlier in modules[:k]):
            raise InvalidArgumentError(f"branch {k} must be a module of its own; it stands there twice")
    return modules


def feature_width(modules: Sequence[nn.Module], features: int | None) -> int:
    """Return the branches' output width, given or told by all of them; InvalidArgumentError where they disagree."""
    widths = [getattr(module, "out_features", None) for module in modules]
    if features is None:
        features = widths[0]
    if features is None:
        name = type(modules[0]).__name__
        raise InvalidArgumentError(f"features must be given: {name} has no attribute out_features to tell its width")
    width = checked_size(features, "features")
    for k, other in enumerate(widths):
        if isinstance(other, int) and other != width:
            raise InvalidArgumentError(f"every branch must return features = {width} features; branch {k} says {other}")
    return width
