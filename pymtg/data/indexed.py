"""Sample ids for any map-style dataset."""

from __future__ import annotations

import copy
import functools
import operator
from collections import namedtuple
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset, IterableDataset

from pymtg.data.arrays import Batch
from pymtg.errors import InvalidArgumentError, InvalidTypeError, SampleIdError

__all__ = ["IndexedDataset", "with_ids"]


def with_ids(dataset: Any) -> IndexedDataset:
    """Wrap a map-style dataset so that every sample says which one it is.

    Parameters
    ----------
    dataset
        Anything with ``__len__`` and ``__getitem__(int)``: a torch dataset, a ``Subset``, a ``ConcatDataset``, a list
        of samples, a Hugging Face dataset. A dataset that was wrapped before is returned as it is.

    Returns
    -------
    A dataset of the same length. A tuple or list item ``(input, target, ...)`` becomes
    ``(sample_id, input, target, ...)``, a named tuple gets such a first field, and a dict item the key ``"sample_id"``;
    a mapping of another type keeps it where its copies take a key. The id is the position in the
    *wrapped* dataset, 0 to ``len(dataset) - 1``, whatever order a loader draws. So ``with_ids(Subset(d, part))``
    numbers the subset's samples from 0, which is what a data map of the subset's size wants, and
    ``Subset(with_ids(d), part)`` keeps the positions in ``d``.

    Raises
    ------
    InvalidTypeError
        For an iterable dataset (a stream has no positions), a dict of datasets, or something that is no dataset.

    Examples
    --------
    >>> with_ids([("a", 0), ("b", 1)])[1]
    (1, 'b', 1)
    """
    return dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)


class IndexedDataset(Dataset[Any]):
    """What :func:`with_ids` returns. Attributes of the wrapped dataset can be read through it."""

    def __init__(self, dataset: Any) -> None:
        check_map_style(dataset, "dataset")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample_id = self._position(index)
        return _with_id(sample_id, self.dataset[sample_id])

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        """Return the samples at `indices`, by the wrapped dataset's own ``__getitems__`` where it has one."""
        ids = [self._position(index) for index in indices]
        fetch = getattr(self.dataset, "__getitems__", None)
        if not callable(fetch):
            return [_with_id(i, self.dataset[i]) for i in ids]
        samples = fetch(ids)
        if isinstance(samples, Batch):
            return Batch((torch.tensor(ids), *samples.columns))
        if not isinstance(samples, Sequence) or len(samples) != len(ids):
            raise InvalidTypeError(
                f"dataset.__getitems__ must return a list with one sample per index ({len(ids)}); "
                f"got {type(samples).__name__} of {type(self.dataset).__name__}"
            )
        return [_with_id(i, sample) for i, sample in zip(ids, samples, strict=True)]

    def __getattr__(self, name: str) -> Any:
        # only what is not found here; copying and pickling ask before `dataset` is set
        if name == "dataset" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        return f"with_ids({self.dataset!r})"

    def _position(self, index: Any) -> int:
        try:
            at = operator.index(index)
        except TypeError:
            raise InvalidTypeError(f"index must be an integer; got {index!r}") from None
        size = len(self.dataset)
        if not -size <= at < size:
            raise SampleIdError(f"index must lie in {-size}..{size - 1}; got {at}")
        return at % size


def check_map_style(dataset: Any, argument: str) -> None:
    """Raise InvalidTypeError, naming `argument`, unless `dataset` has a length and is read by position."""
    if isinstance(dataset, IterableDataset):
        raise InvalidTypeError(
            f"{argument} must be a map-style dataset, read by position; {type(dataset).__name__} is an IterableDataset "
            "(a stream, whose samples have no positions)"
        )
    has_both = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not has_both or isinstance(dataset, (str, bytes, Mapping)):
        raise InvalidTypeError(
            f"{argument} must be a map-style dataset, with __len__ and __getitem__(int); got {type(dataset).__name__}"
        )


def _with_id(sample_id: int, sample: Any) -> Any:
    if isinstance(sample, Mapping):
        if "sample_id" in sample:
            raise InvalidArgumentError(f"dataset must not yield the key 'sample_id' itself; sample {sample_id} has it")
        return _mapping_with_id(sample_id, sample)
    if isinstance(sample, (tuple, list)):
        kind = _numbered(type(sample)) if hasattr(sample, "_fields") else None
        return (sample_id, *sample) if kind is None else kind(sample_id, *sample)
    raise InvalidTypeError(
        f"dataset must yield (input, target) tuples or dicts; sample {sample_id} is of type {type(sample).__name__}"
    )


def _mapping_with_id(sample_id: int, sample: Mapping[Any, Any]) -> Any:
    """Return a copy of the sample's type, or a dict where it does not take the key or its copies share their items."""
    if type(sample) is not dict and isinstance(sample, MutableMapping):
        try:
            kept = copy.copy(sample)
            kept["sample_id"] = sample_id
        except Exception:  # whatever a type raises that takes no such key
            return {**sample, "sample_id": sample_id}
        if "sample_id" not in sample:
            return kept
        del sample["sample_id"]
    return {**sample, "sample_id": sample_id}


def without_id(batch: Mapping[Any, Any]) -> Any:
    """Return a batch without its key ``"sample_id"``: of its own type if that has copies to take a key from."""
    rest = {name: value for name, value in batch.items() if name != "sample_id"}
    if type(batch) is dict:
        return rest
    try:
        if not isinstance(batch, MutableMapping):
            return type(batch)(rest)  # type: ignore[call-arg]
        ids, kept = batch["sample_id"], copy.copy(batch)
        del kept["sample_id"]
    except Exception:  # whatever a type raises that is made in another way, or gives no key away
        return rest
    if "sample_id" in batch:
        return kept
    batch["sample_id"] = ids
    return rest


class Numbered:
    """What the named tuples of a wrapped dataset are made into: one field more, the first, ``sample_id``."""

    __slots__ = ()
    plain: ClassVar[type[Any]]
    """The named tuples' own type."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_numbered_from, (self.plain, tuple(self)))  # type: ignore[arg-type]


@functools.cache
def _numbered(plain: type[Any]) -> Any:
    """Return the type with a field more; None where a field is called sample_id already."""
    if "sample_id" in plain._fields:
        return None
    fields = namedtuple(plain.__name__, ("sample_id", *plain._fields))  # type: ignore[misc]
    return type(plain.__name__, (Numbered, fields), {"__slots__": (), "plain": plain})


def _numbered_from(plain: Any, values: tuple[Any, ...]) -> Any:
    return _numbered(plain)(*values)
