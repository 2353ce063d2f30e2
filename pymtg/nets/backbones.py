"""Backbones: modules that turn inputs into feature vectors, and say how wide these are (`out_features`)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pymtg._checks import check_floating
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["MLP", "ConvNet"]


class MLP(nn.Module):
    """Fully connected layers, each followed by a ReLU and (where asked for) dropout.

    Parameters
    ----------
    in_features
        Width of the input.
    hidden
        Widths of the layers; the last one is the width of the output.
    dropout
        Probability of dropping a unit after each layer, in [0, 1).

    Attributes
    ----------
    out_features
        Width of the output.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For widths that are not positive integers, no layers, or a dropout outside [0, 1).
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (64, 64), dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features = checked_size(in_features, "in_features")
        widths = checked_sizes(hidden, "hidden")
        dropout = checked_dropout(dropout)
        layers: list[nn.Module] = []
        for before, after in zip((self.in_features, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features ``[B, out_features]`` of inputs ``[B, ...]``, which are flattened first.

        Raises InvalidArgumentError if a flattened input is not `in_features` wide, InvalidTypeError for integers.
        """
        self.check(inputs)
        features: Tensor = self.layers(inputs.flatten(1))
        return features

    def check(self, inputs: Tensor) -> None:
        """Raise unless inputs are floating and, flattened, `in_features` wide."""
        check_floating(inputs, "inputs")
        if inputs.ndim < 2 or math.prod(inputs.shape[1:]) != self.in_features:
            raise InvalidArgumentError(
                f"inputs must be [batch, {self.in_features}] (this network's in_features); got {tuple(inputs.shape)}"
            )


class ConvNet(nn.Module):
    """A small convolutional network: 3 x 3 convolutions, each halving the image; then a mean over pixels.

    A block is convolution, batch norm, ReLU and max-pooling.

    Parameters
    ----------
    in_channels
        Channels of the input images.
    channels
        Channels after each block; the last one is the width of the output.
    dropout
        Probability of dropping a feature of the output, in [0, 1).

    Attributes
    ----------
    out_features
        Width of the output.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For channels that are not positive integers, no blocks, or a dropout outside [0, 1).
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (32, 64, 128), dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels = checked_size(in_channels, "in_channels")
        widths = checked_sizes(channels, "channels")
        dropout = checked_dropout(dropout)
        self.blocks = nn.Sequential(
            *(_block(before, after) for before, after in zip((self.in_channels, *widths), widths, strict=False))
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.out_features = widths[-1]
        self.smallest = 2 ** len(widths)
        self.options = {"in_channels": self.in_channels, "channels": list(widths), "dropout": dropout}

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, out_features]`` of images ``[B, in_channels, H, W]``.

        Raises InvalidArgumentError for another number of channels, or images too small to be halved by every block,
        InvalidTypeError for integers.
        """
        self.check(images)
        features: Tensor = self.pool(self.blocks(images))
        return features

    def check(self, images: Tensor) -> None:
        """Raise for integers, another number of channels, or images that cannot be halved by every block."""
        check_floating(images, "inputs")
        if images.ndim != 4 or images.shape[1] != self.in_channels or min(images.shape[2:]) < self.smallest:
            raise InvalidArgumentError(
                f"inputs must be [batch, {self.in_channels}, H, W] with H and W at least {self.smallest}; "
                f"got {tuple(images.shape)}"
            )


def _block(before: int, after: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))


def checked_size(value: Any, argument: str) -> int:
    """Return `value` as an int; a typed error unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"{argument} must be an integer; got {value!r}")
    if value < 1:
        raise InvalidArgumentError(f"{argument} must be at least 1; got {value}")
    return int(value)


def checked_sizes(values: Any, argument: str) -> tuple[int, ...]:
    """Return `values` as a tuple of ints; a typed error unless it is a non-empty sequence of positive integers."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidTypeError(f"{argument} must be a sequence of integers; got {values!r}")
    if not values:
        raise InvalidArgumentError(f"{argument} must hold at least one width; got none")
    return tuple(checked_size(value, f"{argument}[{i}]") for i, value in enumerate(values))


def checked_dropout(value: Any) -> float:
    """Return `value` as a float; a typed error unless it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"dropout must be a number; got {value!r}")
    if not 0 <= float(value) < 1:
        raise InvalidArgumentError(f"dropout must lie in [0, 1); got {value}")
    return float(value)
