"""pymtg's own backbones as JSON: their class and what it is called with."""

from __future__ import annotations

from typing import Any

from torch import nn

from pymtg.errors import InvalidArgumentError
from pymtg.nets.backbones import MLP, ConvNet
from pymtg.nets.papers import CelebABranch, CelebAStem, ResNet18, SmallCNN

__all__ = ["built_part", "described_part"]

_KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (MLP, ConvNet, SmallCNN, CelebAStem, CelebABranch, ResNet18)
}
_MOST_LAYERS = 1000  # of an MLP or ConvNet: each costs time to build, whatever its size


def described_part(module: nn.Module, place: str) -> dict[str, Any]:
    """Return ``{"kind", "options"}`` of a trunk or branch; InvalidArgumentError, naming `place`, for other modules."""
    kind = type(module)
    if _KINDS.get(kind.__name__) is not kind:
        raise InvalidArgumentError(f"net must be made of {', '.join(_KINDS)}; its {place} is a {kind.__name__}")
    options = _mlp_options(module) if isinstance(module, MLP) else dict(module.options)  # type: ignore[arg-type]
    return {"kind": kind.__name__, "options": options}


def built_part(description: Any) -> Any:
    """Build a described part; typed errors for an unknown kind or options that it does not take."""
    kind = _KINDS.get(description["kind"])
    if kind is None:
        raise InvalidArgumentError(f"kind must be one of {', '.join(_KINDS)}; got {description['kind']!r}")
    options = description["options"]
    if any(isinstance(value, list) and len(value) > _MOST_LAYERS for value in options.values()):
        raise InvalidArgumentError(f"options must be of at most {_MOST_LAYERS} layers")
    return kind(**options)


def _mlp_options(module: MLP) -> dict[str, Any]:
    linear = [layer for layer in module.layers if isinstance(layer, nn.Linear)]
    dropout = next((layer.p for layer in module.layers if isinstance(layer, nn.Dropout)), 0.0)
    return {
        "in_features": module.in_features,
        "hidden": [layer.out_features for layer in linear],
        "dropout": float(dropout),
    }
