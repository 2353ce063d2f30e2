"""CIFAR-10 and CIFAR-100 as distributed, as Python pickles or in the binary form: images and labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pymtg.data._unpickle import read_pickle
from pymtg.errors import FileFormatError

__all__ = ["CIFAR10", "CIFAR100", "Images", "read_cifar"]

_PIXELS = 3 * 32 * 32


class Images(NamedTuple):
    """One part of the set."""

    pixels: npt.NDArray[np.uint8]
    """``[N, 3, 32, 32]``."""
    labels: npt.NDArray[np.int64]
    """``[N]``."""


@dataclass(frozen=True)
class Form:
    """One way in which a set is distributed.

    Parameters
    ----------
    archive, folder
        Name of the archive, and of the folder that it unpacks to.
    train, test
        Names of the files; each part's images stand in them one file after the other.
    label
        Of a pickle: the key of the labels. Of the binary form: which byte of a record they are.
    label_bytes
        Of the binary form: bytes before the pixels of a record; 0 for a pickle.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str | int
    label_bytes: int = 0


@dataclass(frozen=True)
class Source:
    """A set, its classes and its forms, in the order in which they are looked for."""

    name: str
    num_classes: int
    forms: tuple[Form, ...]


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Source(
    "CIFAR-10",
    10,
    (
        Form("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, ("test_batch",), "labels"),
        Form(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            tuple(f"{name}.bin" for name in _BATCHES),
            ("test_batch.bin",),
            label=0,
            label_bytes=1,
        ),
    ),
)
CIFAR100 = Source(
    "CIFAR-100",
    100,
    (
        Form("cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), "fine_labels"),
        Form("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), ("test.bin",), label=1, label_bytes=2),
    ),
)


def read_cifar(directory: str | os.PathLike[str], source: Source) -> tuple[Images, Images]:
    """Return the training and the test part of a set.

    Parameters
    ----------
    directory
        The folder of one of the forms, or the one that holds it.
    source
        Which set.

    Raises
    ------
    FileNotFoundError
        If a file is not there; says which and in what archive it comes.
    FileFormatError
        If a file is truncated, of a wrong size, or not what its name says.
    """
    folder, form = _found(Path(directory), source)
    missing = [name for name in (*form.train, *form.test) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]} is missing; it is part of {form.archive} ({_origin(source)})")
    read = _read_binary if form.label_bytes else _read_pickled
    train, test = ([read(folder / name, form, source) for name in names] for names in (form.train, form.test))
    return _joined(train), _joined(test)


def _found(directory: Path, source: Source) -> tuple[Path, Form]:
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory} to read {source.name} from")
    places = [(folder, form) for form in source.forms for folder in (directory, directory / form.folder)]
    for folder, form in places:
        if any((folder / name).is_file() for name in (*form.train, *form.test)):
            return folder, form
    folders = " or ".join(form.folder for form in source.forms)
    archives = " or ".join(form.archive for form in source.forms)
    raise FileNotFoundError(
        f"{directory} holds no {source.name}: unpack {archives} there, which gives {folders} ({_origin(source)})"
    )


def _origin(source: Source) -> str:
    return f"{source.name} is to be had from its author, A. Krizhevsky, at the University of Toronto"


def _read_pickled(path: Path, form: Form, source: Source) -> Images:
    content = read_pickle(path)
    pixels, labels = content.get("data"), content.get(str(form.label))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise FileFormatError(f"{path} must hold 'data', [images, {_PIXELS}] bytes; got {_described(pixels)}")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(x) is int for x in labels):
        raise FileFormatError(
            f"{path} must hold {form.label!r}, a class number for each of {len(pixels)} images; "
            f"got {_described(labels)}"
        )
    return _checked(path, pixels, labels, source)


def _read_binary(path: Path, form: Form, source: Source) -> Images:
    size = form.label_bytes + _PIXELS
    content = np.fromfile(path, dtype=np.uint8)
    if content.size % size:
        raise FileFormatError(
            f"{path} must hold records of {size} bytes; got {content.size} bytes, which is no multiple (truncated?)"
        )
    records = content.reshape(-1, size)
    assert isinstance(form.label, int)
    return _checked(path, records[:, form.label_bytes :], records[:, form.label], source)


def _checked(path: Path, pixels: npt.NDArray[np.uint8], labels: Any, source: Source) -> Images:
    if len(pixels) == 0:
        raise FileFormatError(f"{path} holds no images")
    try:
        numbers = np.asarray(labels, dtype=np.int64)
    except OverflowError:
        raise FileFormatError(f"{path} has a class number that no class has") from None
    wrong = (numbers < 0) | (numbers >= source.num_classes)
    if wrong.any():
        raise FileFormatError(
            f"{path} must have class numbers in 0..{source.num_classes - 1}; got {int(numbers[wrong][0])}"
        )
    return Images(pixels.reshape(-1, 3, 32, 32), numbers)


def _joined(parts: list[Images]) -> Images:
    if len(parts) == 1 and parts[0].pixels.flags.c_contiguous:
        return parts[0]
    # one contiguous array: records of the binary form have labels between
    pixels = np.concatenate([part.pixels for part in parts])
    return Images(pixels, np.concatenate([part.labels for part in parts]))


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a list of {len(value)}" if isinstance(value, list) else "none" if value is None else type(value).__name__
