"""Seeded splits of rows into training, validation and test."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["Rows", "check_seed", "split_rows"]

_Ids = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Row numbers of the parts, each in ascending order."""

    train: _Ids
    test: _Ids
    val: _Ids | None


def split_rows(
    count: int, seed: int, *, test_size: float | None, val_size: float, strata: npt.NDArray[Any] | None = None
) -> Rows:
    """Split `count` rows by `seed`; shares of all rows; `strata` [count] keeps a value's share in every part.

    With `test_size` None the test part is empty: the caller has one already. `val_size` does not change the test part.
    """
    check_seed(seed)
    test_size = 0.0 if test_size is None else check_share(test_size, "test_size", positive=True)
    val_size = check_share(val_size, "val_size")
    if test_size + val_size >= 1:
        raise InvalidArgumentError(f"val_size must be less than 1 - test_size ({1 - test_size:.3g}); got {val_size}")
    rows = np.arange(count, dtype=np.int64)
    rows, test = _take(rows, round(test_size * count), "test_size", test_size, seed, strata)
    train, val = _take(rows, round(val_size * count), "val_size", val_size, seed, strata)
    return Rows(train, test, val if val_size else None)


def check_seed(seed: Any) -> None:
    """Raise a typed error unless `seed` is an integer in 0..2**32-1."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise InvalidTypeError(f"seed must be an integer; got {seed!r}")
    if not 0 <= int(seed) < 2**32:
        raise InvalidArgumentError(f"seed must lie in 0..2**32-1; got {seed}")


def check_share(share: Any, argument: str, *, positive: bool = False) -> float:
    """Return `share` as a float; a typed error unless it is a number in [0, 1), above 0 if `positive`."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
        raise InvalidTypeError(f"{argument} must be a number; got {share!r}")
    if not 0 <= float(share) < 1 or (positive and share == 0):
        least = "above 0" if positive else "at least 0"
        raise InvalidArgumentError(f"{argument} must be a share, {least} and below 1; got {share}")
    return float(share)


def _take(
    rows: _Ids, count: int, argument: str, share: float, seed: int, strata: npt.NDArray[Any] | None
) -> tuple[_Ids, _Ids]:
    """Return the rows that stay and the `count` that are taken."""
    if share == 0:
        return rows, rows[:0]
    from sklearn.model_selection import train_test_split

    try:
        kept, taken = train_test_split(
            rows, test_size=count, random_state=int(seed), stratify=None if strata is None else strata[rows]
        )
    except ValueError as error:  # too few rows for the share or for the strata
        raise InvalidArgumentError(f"{argument}={share:g} does not fit {len(rows)} rows: {error}") from None
    return np.sort(kept), np.sort(taken)
