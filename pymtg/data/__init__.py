"""Data: built-in sets, readers, in-memory datasets, and sample ids for any dataset."""

from __future__ import annotations

from collections.abc import Sequence

from pymtg.data.arrays import IGNORE_INDEX, ArrayTasks, Batch, collate, from_arrays
from pymtg.data.celeba import celeba
from pymtg.data.cifar import cifar10, cifar100
from pymtg.data.digits import digits
from pymtg.data.images import ImageFiles
from pymtg.data.indexed import IndexedDataset, with_ids
from pymtg.data.mulan import mulan
from pymtg.data.pixels import PixelTasks
from pymtg.data.taskdata import TaskData
from pymtg.data.taskonomy import TaskonomyData, TaskonomyViews, taskonomy
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = [
    "IGNORE_INDEX",
    "ArrayTasks",
    "Batch",
    "ImageFiles",
    "IndexedDataset",
    "PixelTasks",
    "TaskData",
    "TaskonomyData",
    "TaskonomyViews",
    "celeba",
    "cifar10",
    "cifar100",
    "collate",
    "digits",
    "from_arrays",
    "load",
    "mulan",
    "taskonomy",
    "with_ids",
]

_KNOWN = (
    "'digits', 'mulan:DIR/STEM' (DIR/STEM.xml with DIR/STEM-train.arff and DIR/STEM-test.arff, or DIR/STEM.arff), "
    "'cifar10:DIR', 'cifar100:DIR' or 'celeba:DIR' (as they are distributed)"
)
_NAMES = {
    "digits": "the digits",
    "mulan": "a Mulan set",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "celeba": "CelebA",
}


def load(
    spec: str,
    seed: int = 0,
    *,
    test_size: float = 1 / 3,
    val_size: float = 0.0,
    targets: int | None = None,
    attributes: str | Sequence[str] | None = None,
    image_size: int | None = None,
    images: str | None = None,
) -> TaskData:
    """Load a data set by name.

    Parameters
    ----------
    spec
        ``"digits"`` (:func:`digits`), ``"mulan:DIR/STEM"`` (:func:`mulan`), ``"cifar10:DIR"`` (:func:`cifar10`),
        ``"cifar100:DIR"`` (:func:`cifar100`) or ``"celeba:DIR"`` (:func:`celeba`), as on the command line.
    seed
        Draws whatever the set leaves to chance: splits, flipped images and random labels.
    test_size, val_size
        Shares of the rows that the test and the validation set get. `test_size` is not used where the set comes with
        a test file of its own, nor `val_size` for CelebA, which comes with a validation set; with `val_size` 0 others
        have none.
    targets
        For a Mulan set without an XML file: how many of its last columns are regression targets.
    attributes, image_size, images
        For CelebA: `attributes`, `size` and `images` of :func:`celeba`, by default its own.

    Raises
    ------
    InvalidArgumentError
        For a set that is not known, an argument of another set, and what the set's own loader raises.
    InvalidTypeError
        If `spec` is not a string.
    """
    if not isinstance(spec, str):
        raise InvalidTypeError(f"spec must be a string; got {spec!r}")
    kind, colon, rest = spec.partition(":")
    if not (kind == "digits" and not colon) and not (kind in _NAMES and kind != "digits" and rest):
        raise InvalidArgumentError(f"spec must name a known data set: {_KNOWN}; got {spec!r}")
    if targets is not None and kind != "mulan":
        raise InvalidArgumentError(f"targets must be left out for {_NAMES[kind]}, whose tasks are known; got {targets}")
    of_celeba = {"attributes": attributes, "size": image_size, "images": images}
    given = {name: value for name, value in of_celeba.items() if value is not None}
    if given and kind != "celeba":
        name, value = next(iter(given.items()))
        raise InvalidArgumentError(
            f"{'image_size' if name == 'size' else name} must be left out for {_NAMES[kind]}, it is for CelebA; "
            f"got {value!r}"
        )
    if kind == "digits":
        return digits(seed, test_size=test_size, val_size=val_size)
    if kind == "mulan":
        return mulan(rest, seed, test_size=test_size, val_size=val_size, targets=targets)
    if kind == "celeba":
        return celeba(rest, **given)  # type: ignore[arg-type]
    return (cifar10 if kind == "cifar10" else cifar100)(rest, seed, val_size=val_size)
