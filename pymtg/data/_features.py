"""Features of a table made ready for a network, with figures of the training rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FeatureScaler", "target_figures"]

_Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FeatureScaler:
    """Expands nominal columns, fills missing values with the training mean, shifts and scales.

    Parameters
    ----------
    kinds
        Per column its number of nominal values; None where it is numeric.
    mean, shift, scale
        Per *expanded* column: what fills a missing value; the value is then ``(x - shift) / scale``.
    """

    kinds: tuple[int | None, ...]
    mean: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, train: _Matrix, nominal: Sequence[tuple[str, ...] | None], *, sparse: bool) -> FeatureScaler:
        """Take the figures of the training rows ``[N, columns]``; NaN where a value is missing."""
        kinds = tuple(None if values is None else len(values) for values in nominal)
        columns = _expanded(train, kinds)
        known = ~np.isnan(columns)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, columns, 0).sum(0, dtype=np.float64) / count  # 0 where nothing is known
        binary = (~known | (columns == 0) | (columns == 1)).all(0)
        if sparse:  # shifting would fill every zero
            shift, scale = np.zeros_like(mean), np.abs(np.where(known, columns, 0)).max(0).astype(np.float64)
        else:
            squares = np.where(known, columns - mean, 0) ** 2
            shift, scale = mean, np.sqrt(squares.sum(0, dtype=np.float64) / count)
        # a constant column is left alone but for its shift: rounding may leave it a tiny, meaningless deviation
        flat = scale <= 1e-12 * np.maximum(np.abs(mean), 1)
        return cls(kinds, mean, np.where(binary, 0.0, shift), np.where(binary | flat, 1.0, scale))

    def transform(self, features: _Matrix) -> npt.NDArray[np.float32]:
        """Return ``[N, expanded columns]`` float32; infinite where a value lies further out than float32 reaches."""
        columns = _expanded(features, self.kinds)
        # in the table's own dtype: a sparse set's matrix is large, and doubles would double it once more
        mean, shift, scale = (figures.astype(columns.dtype) for figures in (self.mean, self.shift, self.scale))
        missing = np.isnan(columns)
        if missing.any():
            columns = np.where(missing, mean, columns)
        with np.errstate(over="ignore"):  # a far outlier of a narrow feature; from_arrays tells of infinities
            return np.asarray((columns - shift) / scale, dtype=np.float32)


def target_figures(train: _Matrix) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and deviation of each column of ``[N, T]`` training targets, over what is known (not NaN).

    0 and 1 where nothing is; the deviation of a constant column is 1, so that it is shifted only.
    """
    known = ~np.isnan(train)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, train, 0).sum(0, dtype=np.float64) / count
    scale = np.sqrt((np.where(known, train - mean, 0) ** 2).sum(0, dtype=np.float64) / count)
    return mean, np.where(scale <= 1e-12 * np.maximum(np.abs(mean), 1), 1.0, scale)


def _expanded(features: _Matrix, kinds: Sequence[int | None]) -> _Matrix:
    """Replace each nominal column of more than two values by one 0/1 column a value (all NaN where it is missing)."""
    if all(count is None or count <= 2 for count in kinds):
        return features
    parts = []
    for column, count in zip(features.T, kinds, strict=True):
        if count is None or count <= 2:
            parts.append(column[:, None])
        else:
            one_hot = (column[:, None] == np.arange(count)).astype(features.dtype)
            one_hot[np.isnan(column)] = np.nan
            parts.append(one_hot)
    return np.concatenate(parts, axis=1)
