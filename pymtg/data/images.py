"""Image files as tensors, read when they are asked for. Decoded by Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pymtg.data.pixels import PixelTasks
from pymtg.errors import FileFormatError, InvalidArgumentError
from pymtg.nets.backbones import checked_size
from pymtg.tasks import TaskLayout

__all__ = ["ImageFiles", "pillow", "read_image"]


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of ``(image [3, size, size], targets [T])`` whose images are files, read one by one.

    Made for a ``DataLoader`` with workers: it holds names and targets only, and pickles. Images are RGB in 0..1, in
    torch's default dtype.

    Parameters
    ----------
    folder, names
        Where the files are, and their names.
    targets
        ``[M, T]`` class numbers.
    layout
        The T tasks.
    size
        Height and width that images are brought to, by bilinear interpolation that averages where it shrinks.
    crop
        Side of a square that is cut out of the middle of the image before; None for the whole image, whose shape then
        changes where it is not square.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    InvalidArgumentError, InvalidTypeError
        For a size or crop below 1, no samples, or names and targets of other lengths.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names: Sequence[str],
        targets: Tensor,
        layout: TaskLayout,
        *,
        size: int = 64,
        crop: int | None = None,
    ) -> None:
        pillow()
        self.folder = Path(folder)
        self.names = list(names)
        self.targets = targets
        self.layout = layout
        self.size = checked_size(size, "size")
        self.crop = None if crop is None else checked_size(crop, "crop")
        if not self.names or tuple(targets.shape) != (len(self.names), layout.num_tasks):
            raise InvalidArgumentError(
                f"targets must be [names, tasks], {[len(self.names), layout.num_tasks]} with at least one name; "
                f"got {list(targets.shape)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a sample; FileFormatError if its file is no image, FileNotFoundError if there is none."""
        pixels = torch.from_numpy(self._pixels(index))
        return pixels.to(torch.get_default_dtype()) / 255, self.targets[index]

    def in_memory(self) -> PixelTasks:
        """Read all images, on all cores, into a dataset that holds them as bytes and hands out the same."""
        pixels = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        array = pixels.numpy()

        def read(index: int) -> None:
            array[index] = self._pixels(index)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:  # Pillow decodes without the interpreter's lock
            for _ in threads.map(read, range(len(self)), chunksize=64):
                pass
        return PixelTasks(pixels, self.targets, self.layout)

    @property
    def nbytes(self) -> int:
        """How many bytes :meth:`in_memory` would take."""
        return len(self) * 3 * self.size * self.size

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} images of {self.folder}, size={self.size}, {self.layout.num_tasks} tasks)"

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        image = read_image(self.folder / self.names[index]).convert("RGB")
        if self.crop is not None:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), pillow().Resampling.BILINEAR)
        pixels: npt.NDArray[np.uint8] = np.array(image, dtype=np.uint8).transpose(2, 0, 1)
        return pixels


def read_image(path: Path) -> Any:
    """Return a decoded image.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated, no image, or one so large that it is taken for an attack.
    """
    module = pillow()
    try:
        with module.open(path) as image:  # closes the file; what is loaded stays
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    # Pillow says OSError for truncated files, SyntaxError and ValueError for some broken ones
    except (OSError, SyntaxError, ValueError, EOFError, module.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(f"{path} is truncated or no image: {reason}") from None
    return image


def pillow() -> ModuleType:
    """Return Pillow's ``Image`` module; ImportError, with what to install, if it is missing."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("reading images needs pillow: pip install 'pymtg[images]'") from None
    return Image
