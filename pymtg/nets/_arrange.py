"""Whether K branches run together or one by one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pymtg.errors import InvalidArgumentError
from pymtg.nets._separate import SeparateBranches
from pymtg.nets._stacked import CannotStackError, StackedBranches


def arranged(modules: Sequence[nn.Module], batched: str | bool, fanned: bool) -> SeparateBranches | StackedBranches:
    """Return branches that run as asked for; `fanned` says that every branch gets its own copy of the input.

    Raises InvalidArgumentError, which names the layer, if they must run together and cannot.
    """
    if batched is False or (batched == "auto" and not worthwhile(modules)):
        return SeparateBranches(modules, fanned)
    try:
        return StackedBranches(modules, fanned)
    except CannotStackError as reason:
        if batched is True:
            raise InvalidArgumentError(
                f"batched must be 'auto' or False for these branches, which cannot run together: {reason}"
            ) from None
        return SeparateBranches(modules, fanned)


def worthwhile(modules: Sequence[nn.Module]) -> bool:
    """Tell whether K copies of such a module are expected to be faster together.

    They are as long as the layers are small, so that a step's time goes into calls and not into products: every fully
    connected layer with at most 2^18 weights, every convolution with at most 2^11 pairs of channels
    (``benchmarks/bench_branches.py``; docs/performance.md, "Branches together"). Inputs are not known yet: large
    batches of large images take no profit.
    """
    return len(modules) > 1 and all(_small(layer) for layer in modules[0].modules())


def _small(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.in_features * layer.out_features <= 2**18
    if isinstance(layer, _ConvNd):
        return layer.out_channels * layer.in_channels // layer.groups <= 2**11
    return True
