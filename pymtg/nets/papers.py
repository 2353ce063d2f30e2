"""The papers' networks for images: STG-MTL's small one, DMTG's branch for CelebA, and ResNet-18. No torchvision."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError
from pymtg.nets.backbones import checked_dropout, checked_size

__all__ = ["CelebABranch", "CelebAStem", "ResNet18", "SmallCNN"]


class SmallCNN(nn.Sequential):
    """STG-MTL's network for CIFAR-10 and CIFAR-100, without its last layer.

    A 5 x 5 convolution (32 channels) and max-pooling, two 3 x 3 convolutions (64) and max-pooling, each convolution
    with batch norm and ReLU; then dropout, a fully connected layer of 128, ReLU, dropout.

    Parameters
    ----------
    in_channels
        Channels of the images.
    image_size
        Height and width of the images; 32 in the paper, at least 8.
    hidden
        Width of the output.
    dropout
        Probability of dropping a value, in [0, 1).

    Attributes
    ----------
    out_features
        Width of the output.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes that are not positive integers, images that are too small, or a dropout outside [0, 1).

    Notes
    -----
    ``ModelType.CUSTOM_1`` in ``models/cifar10.py`` of the released code of Sherif et al. 2024 (arXiv 2307.03374).
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, hidden: int = 128, dropout: float = 0.2) -> None:
        in_channels = checked_size(in_channels, "in_channels")
        size = checked_size(image_size, "image_size")
        hidden, dropout = checked_size(hidden, "hidden"), checked_dropout(dropout)
        if size < 8:
            raise InvalidArgumentError(f"image_size must be at least 8; got {size}")
        left = (size - 4) // 2 // 2
        super().__init__(
            *(nn.Conv2d(in_channels, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64 * left**2, hidden), nn.ReLU(), nn.Dropout(dropout)),
        )
        self.in_channels, self.image_size, self.out_features = in_channels, size, hidden
        self.options = {"in_channels": in_channels, "image_size": size, "hidden": hidden, "dropout": dropout}

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, out_features]`` of images ``[B, in_channels, image_size, image_size]``.

        Raises InvalidArgumentError for images of another shape.
        """
        check_images(images, self.in_channels, self.image_size)
        features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return features


class CelebAStem(nn.Sequential):
    """The first stage of DMTG's network for CelebA: a 3 x 3 convolution, batch norm, ReLU, overlapping max-pooling.

    The part that all branches share in the released configurations whose names end in "shared".

    Parameters
    ----------
    in_channels
        Channels of the images.
    width
        Channels of the output; 64 in the paper.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes that are not positive integers.

    Notes
    -----
    ``ResNet18Base`` in ``models/resnet.py`` of the released code of Gao et al. 2024 (arXiv 2407.05082).
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        in_channels, width = checked_size(in_channels, "in_channels"), checked_size(width, "width")
        convolution = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2))
        self.options = {"in_channels": in_channels, "width": width}
        nn.init.xavier_uniform_(convolution.weight)


class CelebABranch(nn.Sequential):
    """DMTG's branch for CelebA: the first stage of a ResNet-18, one of its blocks, mean pooling, all values flattened.

    Parameters
    ----------
    in_channels
        Channels of the images.
    image_size
        Height and width of the images; 64 in the paper, at least 6.
    width
        Channels of the layers; 64 in the paper.
    stem
        Whether :class:`CelebAStem` is part of it. Without it, it takes what a stem that is shared returns for such
        images.

    Attributes
    ----------
    out_features
        Width of the output; 14,400 = 64 * 15 * 15 for images of 64 x 64.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes that are not positive integers, or images that are too small.

    Notes
    -----
    ``ResNet18`` (with `stem`) and ``ResNet18Group`` (without) in ``models/resnet.py`` of the released code of Gao et
    al. 2024 (arXiv 2407.05082), with its initial weights (Xavier's, uniform).
    """

    def __init__(self, in_channels: int = 3, image_size: int = 64, width: int = 64, stem: bool = True) -> None:
        in_channels = checked_size(in_channels, "in_channels")
        size, width = checked_size(image_size, "image_size"), checked_size(width, "width")
        if size < 6:
            raise InvalidArgumentError(f"image_size must be at least 6; got {size}")
        block = ResidualBlock(width, width)
        for convolution in (block.conv1, block.conv2):
            nn.init.xavier_uniform_(convolution.weight)
        first = [CelebAStem(in_channels, width)] if stem else []
        super().__init__(*first, block, nn.AvgPool2d(2), nn.Flatten())
        pooled = (size - 3) // 2 + 1
        self.expected = (in_channels, size) if stem else (width, pooled)
        self.out_features = width * (pooled // 2) ** 2
        self.options = {"in_channels": in_channels, "image_size": size, "width": width, "stem": bool(stem)}

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, out_features]``; InvalidArgumentError for inputs of another shape."""
        check_images(images, *self.expected)
        features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return features


class ResNet18(nn.Sequential):
    """ResNet-18 for small images: a 3 x 3 convolution of stride 1 and no max-pooling at its beginning.

    Parameters
    ----------
    in_channels
        Channels of the images, which may be of any size from 8 x 8.
    width
        Channels of the first stage; those behind have 2, 4 and 8 times as many. 64 in the papers.

    Attributes
    ----------
    out_features
        Width of the output, 8 times `width`.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes that are not positive integers.

    Notes
    -----
    He et al., CVPR 2016; in this form ``models/resnet_plus.py`` in DMTG's released code. STG-MTL's takes torchvision's,
    which begins with a 7 x 7 convolution of stride 2 and max-pooling.
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        in_channels, width = checked_size(in_channels, "in_channels"), checked_size(width, "width")
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        before = width
        for stage in range(4):
            after = width * 2**stage
            layers += [ResidualBlock(before, after, 1 if stage == 0 else 2), ResidualBlock(after, after)]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.in_channels, self.out_features = in_channels, before
        self.options = {"in_channels": in_channels, "width": width}

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, out_features]`` of images ``[B, in_channels, H, W]``.

        Raises InvalidArgumentError for another number of channels, or images smaller than 8 x 8.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or min(images.shape[2:]) < 8:
            raise InvalidArgumentError(
                f"inputs must be [batch, {self.in_channels}, H, W] with H and W at least 8; got {tuple(images.shape)}"
            )
        features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return features


class ResidualBlock(nn.Module):
    """ResNet's basic block: two 3 x 3 convolutions with batch norm, beside a shortcut.

    The shortcut is the input, or a 1 x 1 convolution with batch norm where shape or stride ask for one.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[B, after, H / stride, W / stride]`` of ``[B, before, H, W]``."""
        found = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(found)) + self.shortcut(inputs))


def check_images(images: Any, channels: int, size: int) -> None:
    """Raise InvalidArgumentError unless `images` is ``[B, channels, size, size]``."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, size, size):
        raise InvalidArgumentError(
            f"inputs must be [batch, {channels}, {size}, {size}] for this network; got {tuple(images.shape)}"
        )
