"""Data maps of the same samples merged into one, exactly: Chan et al. 1983, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pymtg import _words
from pymtg._reference import MapState
from pymtg._snapshot import Snapshot
from pymtg.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

__all__ = ["add", "check_alike", "merged_counts", "packed"]


def check_alike(data_map: DataMap, other: DataMap) -> None:
    """Raise unless another map is of the same samples and tasks."""
    for what in ("num_samples", "missing", "layout"):
        ours, theirs = getattr(data_map, what), getattr(other, what)
        if ours != theirs:
            shown = "" if what == "layout" else f"; got {theirs}, this map has {ours}"
            raise InvalidArgumentError(f"other must have this map's {what}{shown}")


def add(state: MapState, other: MapState) -> None:
    """Add another state's observations to a state, in place."""
    device = state.words.device
    words, counts, rejected = (tensor.to(device) for tensor in other)
    state.words.copy_(_merged_words(Snapshot(0, *state[:2], 0), Snapshot(0, words, counts, 0)))
    state.counts.copy_(merged_counts(state.counts.long() + counts.long(), missing=state.missing))
    state.rejected.add_(rejected)


def merged_counts(total: Tensor, *, missing: bool) -> Tensor:
    """Return total counts as a map keeps them."""
    return total.clamp(max=_words.MOST_MISSING_COUNTED if missing else _words.MOST_COMPLETE_COUNTED)


def packed(mean: Tensor, variance: Tensor, right: Tensor, counted: Tensor) -> Tensor:
    """Return the packed words of merged float64 means and variances (ddof 0) and of sums of right predictions.

    `counted` are the observations that right predictions were counted over: where they are more than a map keeps, the
    share is kept.
    """
    shrink = (_words.MOST_COUNTED / counted.clamp(min=1)).clamp(max=1)
    return _words.pack(mean.float(), variance.sqrt().float(), (right * shrink).round().int())


def _merged_words(a: Snapshot, b: Snapshot) -> Tensor:
    """Return the words of n = n_a + n_b observations and so on, for all samples and tasks."""
    n_a, n_b = a.count.double(), b.count.double()
    n = (n_a + n_b).clamp(min=1)
    (mean_a, std_a), (mean_b, std_b) = (tuple(v.double() for v in _words.unpack_values(m.words)) for m in (a, b))
    mean = (n_a * mean_a + n_b * mean_b) / n
    variance = (n_a * std_a**2 + n_b * std_b**2) / n + (mean_b - mean_a) ** 2 * n_a * n_b / n**2
    right = _words.unpack_right(a.words) + _words.unpack_right(b.words)
    counted = n_a.clamp(max=_words.MOST_COUNTED) + n_b.clamp(max=_words.MOST_COUNTED)
    return packed(mean, variance, right, counted)
