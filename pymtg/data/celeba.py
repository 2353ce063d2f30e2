"""CelebA: faces and 40 attributes of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pymtg.data.images import ImageFiles
from pymtg.data.taskdata import TaskData
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["DMTG_ATTRIBUTES", "celeba"]

DMTG_ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Black_Hair", "Blond_Hair", "Brown_Hair", "Goatee", "Mustache", "No_Beard"),
    *("Rosy_Cheeks", "Wearing_Hat"),
)
"""The nine attributes of DMTG's released configurations, in their order."""

_ATTRIBUTES, _PARTITION, _IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
_PLACES = {
    _ATTRIBUTES: ("", "Anno", "celeba", "celeba/Anno", "CelebA/Anno"),
    _PARTITION: ("", "Eval", "celeba", "celeba/Eval", "CelebA/Eval"),
    _IMAGES: ("", "Img", "celeba", "celeba/Img", "CelebA/Img", "img_align_celeba"),
}
_MOST_IN_MEMORY = 2**30


def celeba(
    directory: str | os.PathLike[str],
    attributes: str | Sequence[str] = "9",
    *,
    size: int = 64,
    crop: int | None = None,
    images: str = "auto",
) -> TaskData:
    """Read CelebA from a folder, a binary task an attribute.

    Parameters
    ----------
    directory
        Where ``list_attr_celeba.txt``, ``list_eval_partition.txt`` and the folder ``img_align_celeba`` stand, or
        ``Anno``, ``Eval`` and ``Img`` with these in them, as the set is distributed; or the folder around. Nothing is
        downloaded.
    attributes
        ``"9"``: those of DMTG's released configurations (:data:`DMTG_ATTRIBUTES`); ``"all"``: all 40; or names.
    size, crop
        As in :class:`pymtg.data.ImageFiles`.
    images
        ``"disk"``: a file is read whenever it is asked for, which is for a ``DataLoader`` with workers. ``"memory"``:
        all are read here and now and kept as bytes. ``"auto"``: in memory up to 1 GiB a part, on disk beyond.

    Returns
    -------
    Images ``[3, size, size]`` in 0..1, targets ``[T]`` int64, 1 where a face has the attribute; training, validation
    and test set by the partition file.

    Raises
    ------
    FileNotFoundError
        If a file is not there; says which, and where the set is to be had.
    FileFormatError
        If a text file is damaged, the two name other images, or (with ``"memory"``) an image cannot be decoded.
    ImportError
        If Pillow is not installed: ``pip install 'pymtg[images]'``.
    InvalidArgumentError, InvalidTypeError
        For an unknown or repeated attribute, or a bad `size`, `crop` or `images`.

    Notes
    -----
    Liu et al., "Deep learning face attributes in the wild", ICCV 2015. DMTG (Gao et al. 2024, arXiv 2407.05082) shrinks
    the whole image to 64 x 64 without averaging; here it is averaged.
    """
    if images not in ("auto", "memory", "disk"):
        raise InvalidArgumentError(f"images must be 'auto', 'memory' or 'disk'; got {images!r}")
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no directory {root} to read CelebA from")
    paths = {name: _found(root, name) for name in _PLACES}
    table = _read_attributes(paths[_ATTRIBUTES])
    columns = _columns(table.attributes, attributes)
    layout = TaskLayout.binary([table.attributes[c] for c in columns])
    targets = torch.from_numpy(table.values[:, columns] == 1).long()
    parts = _read_partition(paths[_PARTITION], table.images)
    folder = paths[_IMAGES]
    _check_images(folder, table.images)

    def part(number: int) -> Dataset[tuple[torch.Tensor, torch.Tensor]] | None:
        rows = np.flatnonzero(parts == number)
        if len(rows) == 0:
            return None
        files = ImageFiles(folder, [table.images[i] for i in rows], targets[rows], layout, size=size, crop=crop)
        held = images == "memory" or (images == "auto" and files.nbytes <= _MOST_IN_MEMORY)
        return files.in_memory() if held else files

    train, val, test = (part(number) for number in range(3))
    if train is None or test is None:
        which = "train (0)" if train is None else "test (2)"
        raise FileFormatError(f"{paths[_PARTITION]} must put images into every part; none are in {which}")
    return TaskData("celeba", layout, train, test, val)


class Table(NamedTuple):
    """The attributes file."""

    attributes: tuple[str, ...]
    images: list[str]
    values: npt.NDArray[np.int8]
    """``[images, attributes]``, 1 or -1."""


def _found(root: Path, name: str) -> Path:
    wanted = [root / place / name for place in _PLACES[name]]
    # the deepest first: some archives unpack img_align_celeba into a folder of the same name
    for path in reversed(wanted):
        if path.is_dir() if name == _IMAGES else path.is_file():
            return path
    what = "the folder img_align_celeba (unpacked from img_align_celeba.zip)" if name == _IMAGES else name
    raise FileNotFoundError(
        f"{root} holds no CelebA: {what} is missing there; the set is to be had from the Multimedia Laboratory of the "
        "Chinese University of Hong Kong ('Large-scale CelebFaces Attributes')"
    )


def _read_attributes(path: Path) -> Table:
    lines = _lines(path)
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise FileFormatError(f"{path} must begin with the number of images and a line of attributes")
    count, attributes = int(lines[0]), tuple(lines[1].split())
    if len(set(attributes)) != len(attributes) or not attributes:
        raise FileFormatError(f"{path}, line 2: attributes must have names, each once")
    images, rows = [], []
    for number, line in enumerate(lines[2:], 3):
        name, *row = line.split()
        if len(row) != len(attributes) or not set(row) <= {"1", "-1"}:
            raise FileFormatError(f"{path}, line {number}: {name} must have {len(attributes)} values, 1 or -1")
        images.append(name)
        rows.append([value == "1" for value in row])
    if len(images) != count:
        raise FileFormatError(f"{path} must have {count} images, as its first line says; it has {len(images)}")
    return Table(attributes, images, np.array(rows, dtype=np.int8) * 2 - 1)


def _read_partition(path: Path, images: list[str]) -> npt.NDArray[np.int8]:
    """Return for each image its part: 0 training, 1 validation, 2 test."""
    parts: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        name, *part = line.split()
        if part not in (["0"], ["1"], ["2"]):
            raise FileFormatError(f"{path}, line {number}: {name} must be in part 0, 1 or 2; got {' '.join(part)!r}")
        parts[name] = int(part[0])
    absent = next((name for name in images if name not in parts), None)
    if absent is not None or len(parts) != len(images):
        reason = f"{absent} is not there" if absent is not None else f"{len(parts)} there, {len(images)} in the other"
        raise FileFormatError(f"{path} must name the images of {_ATTRIBUTES}; {reason}")
    return np.array([parts[name] for name in images], dtype=np.int8)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is no text file") from None
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        raise FileFormatError(f"{path}, line {blank} is empty")
    return lines


def _check_images(folder: Path, images: list[str]) -> None:
    there = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in images if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing, and {len(missing) - 1} more of {len(images)} images: is "
            "img_align_celeba.zip unpacked whole?"
        )


def _columns(known: tuple[str, ...], attributes: str | Sequence[str]) -> list[int]:
    if attributes == "all":
        return list(range(len(known)))
    wanted = DMTG_ATTRIBUTES if attributes == "9" else attributes
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not all(isinstance(a, str) for a in wanted):
        raise InvalidTypeError(f"attributes must be '9', 'all' or a sequence of names; got {attributes!r}")
    if not wanted or len(set(wanted)) != len(wanted):
        raise InvalidArgumentError(f"attributes must be at least one name, each once; got {list(wanted)}")
    unknown = next((name for name in wanted if name not in known), None)
    if unknown is not None:
        raise InvalidArgumentError(f"attributes must be some of {', '.join(known)}; got {unknown!r}")
    return [known.index(name) for name in wanted]
