"""An encoder-decoder for tasks whose answer is a picture: DMTG's network for Taskonomy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError
from pymtg.nets.backbones import checked_size, checked_sizes

__all__ = ["DenseDecoder", "XceptionBranch", "XceptionTrunk"]


class XceptionTrunk(nn.Sequential):
    """The part of an Xception encoder that all branches share.

    Two 3 x 3 convolutions, the first of stride 2, then a block for each width behind the second: two separable
    convolutions and a stride of 2 where the width changes, three and none where it stays.

    Parameters
    ----------
    widths
        Channels of the two convolutions and of the blocks; those of the released configurations by default, which
        shrink an image 16 times.
    in_channels
        Channels of the images.

    Attributes
    ----------
    out_features
        Channels of the output.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For widths that are not positive integers, or fewer than two.

    Notes
    -----
    ``XceptionEncoder`` with ``first_k_layers: 6`` in the released code of Gao et al. 2024 (arXiv 2407.05082), from that
    of Standley et al., ICML 2020.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 728, 728), in_channels: int = 3) -> None:
        sizes, channels = checked_sizes(widths, "widths"), checked_size(in_channels, "in_channels")
        if len(sizes) < 2:
            raise InvalidArgumentError(f"widths must be at least two; got {list(sizes)}")
        blocks = [XceptionBlock(a, b, relu=i > 0) for i, (a, b) in enumerate(itertools.pairwise(sizes[1:]))]
        super().__init__(
            *(nn.Conv2d(channels, sizes[0], 3, 2, 1, bias=False), nn.BatchNorm2d(sizes[0]), nn.ReLU()),
            *(nn.Conv2d(sizes[0], sizes[1], 3, 1, 1, bias=False), nn.BatchNorm2d(sizes[1]), nn.ReLU()),
            *blocks,
        )
        self.out_features = sizes[-1]
        _start(self)


class XceptionBranch(nn.Sequential):
    """The part of an Xception encoder that every branch has of its own; see :class:`XceptionTrunk`.

    Parameters
    ----------
    in_features
        Channels of the trunk's output.
    widths
        Channels of the blocks; seven of 728 in the released configuration.
    out_features
        Channels of the output; 512 there.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For widths that are not positive integers.

    Notes
    -----
    ``XceptionGroupEncoder`` with ``behind_first_k_layers: 6`` in the released code.
    """

    def __init__(self, in_features: int = 728, widths: Sequence[int] = (728,) * 7, out_features: int = 512) -> None:
        before, sizes = checked_size(in_features, "in_features"), checked_sizes(widths, "widths")
        after = checked_size(out_features, "out_features")
        blocks = [XceptionBlock(a, b) for a, b in zip((before, *sizes), sizes, strict=False)]
        super().__init__(*blocks, nn.ReLU(), *_separable(sizes[-1], after), nn.BatchNorm2d(after))
        self.out_features = after
        _start(self)


class DenseDecoder(nn.Sequential):
    """A head that returns a picture: every stage doubles height and width, and a last convolution gives the channels.

    A stage is a transposed convolution and a 3 x 3 convolution, each with batch norm and ReLU; the last one's second
    convolution is the output.

    Parameters
    ----------
    features
        Channels of the branch's output.
    channels
        Channels of the picture: classes, or numbers a pixel.
    widths
        Channels of the stages; those of the released code by default, which enlarge 16 times.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes that are not positive integers.

    Notes
    -----
    ``ImgDecoder`` (small) in the released code of Gao et al. 2024. As a `head` of :class:`pymtg.nets.BranchedNet` the
    class itself will do, or ``functools.partial(DenseDecoder, widths=...)``.
    """

    def __init__(self, features: int, channels: int, widths: Sequence[int] = (128, 64, 48, 32)) -> None:
        before, out = checked_size(features, "features"), checked_size(channels, "channels")
        layers: list[nn.Module] = []
        sizes = checked_sizes(widths, "widths")
        for i, width in enumerate(sizes):
            layers += [nn.ConvTranspose2d(before, width, 2, 2), nn.BatchNorm2d(width), nn.ReLU()]
            if i + 1 < len(sizes):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        super().__init__(*layers, nn.Conv2d(before, out, 3, padding=1))


class XceptionBlock(nn.Module):
    """Separable convolutions beside a shortcut; two and a stride of 2 where the width changes, else three.

    `relu` says whether the first one stands behind a ReLU.
    """

    def __init__(self, before: int, after: int, relu: bool = True) -> None:
        super().__init__()
        shrinks = before != after
        layers: list[nn.Module] = []
        width = before
        for i in range(2 if shrinks else 3):
            if i or relu:
                layers.append(nn.ReLU())
            layers += [*_separable(width, after), nn.BatchNorm2d(after)]
            width = after
        self.skip: nn.Module = nn.Identity()
        if shrinks:
            layers.append(nn.Conv2d(after, after, 2, 2))
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[B, after, H, W]`` of ``[B, before, H, W]``, half as high and wide where the width changes.

        Raises InvalidArgumentError where an odd height or width would have to be halved.
        """
        if not isinstance(self.skip, nn.Identity) and (inputs.shape[-1] % 2 or inputs.shape[-2] % 2):
            raise InvalidArgumentError(
                f"inputs must be of a height and width that can be halved at every stage; got {tuple(inputs.shape)}"
            )
        found: Tensor = self.layers(inputs) + self.skip(inputs)
        return found


def _separable(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    each = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
    return each, nn.Conv2d(before, after, 1, bias=False)


def _start(module: nn.Module) -> None:
    """Set the released code's initial weights."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan))
