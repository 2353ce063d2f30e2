"""Data: built-in sets, readers, in-memory datasets, and sample ids for any dataset."""

from __future__ import annotations

from pymtg.data.arrays import IGNORE_INDEX, ArrayTasks, Batch, collate, from_arrays
from pymtg.data.digits import digits
from pymtg.data.indexed import IndexedDataset, with_ids
from pymtg.data.mulan import mulan
from pymtg.data.taskdata import TaskData
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = [
    "IGNORE_INDEX",
    "ArrayTasks",
    "Batch",
    "IndexedDataset",
    "TaskData",
    "collate",
    "digits",
    "from_arrays",
    "load",
    "mulan",
    "with_ids",
]

_KNOWN = "'digits', 'mulan:DIR/STEM' (DIR/STEM.xml with DIR/STEM-train.arff and DIR/STEM-test.arff, or DIR/STEM.arff)"


def load(
    spec: str, seed: int = 0, *, test_size: float = 1 / 3, val_size: float = 0.0, targets: int | None = None
) -> TaskData:
    """Load a data set by name.

    Parameters
    ----------
    spec
        ``"digits"`` (:func:`digits`) or ``"mulan:DIR/STEM"`` (:func:`mulan`), as on the command line.
    seed
        Draws whatever the set leaves to chance: splits, and the flipped and random labels of the digits.
    test_size, val_size
        Shares of the rows that the test and the validation set get. `test_size` is not used where the set comes with
        a test file of its own; with `val_size` 0 there is no validation set.
    targets
        For a Mulan set without an XML file: how many of its last columns are regression targets.

    Raises
    ------
    InvalidArgumentError
        For a set that is not known, `targets` beside the digits, and what the set's own loader raises.
    InvalidTypeError
        If `spec` is not a string.
    """
    if not isinstance(spec, str):
        raise InvalidTypeError(f"spec must be a string; got {spec!r}")
    kind, colon, rest = spec.partition(":")
    if kind == "digits" and not colon:
        if targets is not None:
            raise InvalidArgumentError(f"targets must be left out for the digits, whose tasks are known; got {targets}")
        return digits(seed, test_size=test_size, val_size=val_size)
    if kind == "mulan" and rest:
        return mulan(rest, seed, test_size=test_size, val_size=val_size, targets=targets)
    raise InvalidArgumentError(f"spec must name a known data set: {_KNOWN}; got {spec!r}")
