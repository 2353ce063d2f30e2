"""Whether K branches run together or one by one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

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
    """Tell whether K copies of such a module are expected to be faster together."""
    return len(modules) > 1
