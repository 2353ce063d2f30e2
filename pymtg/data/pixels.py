"""Images held in memory as bytes, and handed out as scaled numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pymtg.data.arrays import ArrayTasks, Batch
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["PixelTasks"]


class PixelTasks(ArrayTasks):
    """A dataset of ``(image [channels, H, W], targets [T])`` whose images are kept as bytes.

    An image comes out as ``(pixels / 255 - mean) / std`` in torch's default dtype; a batch is converted at once, and
    the trainers do so on their device. So 50,000 images of 32 x 32 take 154 MB instead of 614.

    Parameters
    ----------
    pixels
        ``[M, channels, H, W]`` uint8.
    targets, layout
        As in :class:`pymtg.data.ArrayTasks`.
    mean, std
        Per channel, of pixels in 0..1; zeros and ones by default, which leaves the images in 0..1.

    Attributes
    ----------
    inputs
        The bytes as given: ``dataset[i][0]`` is ``dataset.prepare(dataset.inputs[i])``.
    mean, std
        As tuples.

    Raises
    ------
    InvalidArgumentError
        For other shapes, or a mean or std that is not one number a channel (std above 0).
    InvalidTypeError
        If the pixels are no uint8 tensor.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        layout: TaskLayout,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(pixels, targets, layout)
        if pixels.dtype != torch.uint8:
            raise InvalidTypeError(f"pixels must be of dtype uint8; got {pixels.dtype}")
        if pixels.ndim != 4:
            raise InvalidArgumentError(f"pixels must be [samples, channels, H, W]; got {tuple(pixels.shape)}")
        channels = pixels.shape[1]
        self.mean = _figures("mean", mean, channels, 0.0)
        self.std = _figures("std", std, channels, 1.0)
        if min(self.std) <= 0:
            raise InvalidArgumentError(f"std must be above 0; got {self.std}")

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return pixels ``[..., channels, H, W]`` scaled, on their device, in torch's default dtype."""
        dtype = torch.get_default_dtype()
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        scale = (1 / (255 * std)).to(inputs.device, dtype)[:, None, None]
        shift = (-mean / std).to(inputs.device, dtype)[:, None, None]
        return torch.addcmul(shift, inputs.to(dtype), scale)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.prepare(self.inputs[index]), self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples at `indices`, fetched and scaled together; the ``DataLoader`` calls this by itself."""
        pixels, targets = super().__getitems__(indices).columns
        return Batch((self.prepare(pixels), targets))

    def take(self, rows: Tensor) -> PixelTasks:
        """Return a dataset of the samples at int64 `rows`, copied, that hands them out as this one does."""
        return PixelTasks(self.inputs[rows], self.targets[rows], self.layout, self.mean, self.std)

    def __repr__(self) -> str:
        return super().__repr__().replace("ArrayTasks", "PixelTasks", 1)


def _figures(argument: str, values: Any, channels: int, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    try:
        figures = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{argument} must be a sequence of numbers; got {values!r}") from None
    if len(figures) != channels or not all(abs(figure) < float("inf") for figure in figures):
        raise InvalidArgumentError(f"{argument} must be {channels} finite numbers, one a channel; got {figures}")
    return figures
