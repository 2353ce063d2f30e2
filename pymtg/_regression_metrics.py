"""R^2 and RMSE of all regression tasks at once; used through :mod:`pymtg.metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout

REGRESSION_METRICS = ("r2", "rmse")


def regression_figures(
    predictions: npt.NDArray[Any], targets: npt.NDArray[Any], layout: TaskLayout
) -> npt.NDArray[np.float64]:
    """Return ``[2, T]``, R^2 and RMSE, of ``[N, T]`` predictions and targets (NaN where missing) of regression tasks.

    scikit-learn's definitions, but for R^2 of fewer than two labels or of constant ones, which is NaN. Arithmetic is
    float64. Raises InvalidArgumentError for a prediction that is not finite or an infinite target.
    """
    _check_finite(predictions, "probabilities", np.isfinite(predictions), layout)
    _check_finite(targets, "targets", ~np.isinf(targets), layout)
    p, y = predictions.astype(np.float64), targets.astype(np.float64)
    known = ~np.isnan(y)
    count = known.sum(0)
    error = (np.where(known, y - p, 0) ** 2).sum(0)
    mean = np.where(known, y, 0).sum(0) / np.maximum(count, 1)
    spread = (np.where(known, y - mean, 0) ** 2).sum(0)
    lowest, highest = (
        np.where(known, y, np.inf).min(0, initial=np.inf),
        np.where(known, y, -np.inf).max(0, initial=-np.inf),
    )
    varied = (lowest < highest) & (spread > 0)  # not by the spread alone: the mean of equal values is rounded
    nothing = np.full(len(count), np.nan)
    r2 = 1 - np.divide(error, spread, out=nothing.copy(), where=varied)
    return np.stack([r2, np.sqrt(np.divide(error, count, out=nothing.copy(), where=count > 0))])


def _check_finite(values: npt.NDArray[Any], what: str, good: npt.NDArray[np.bool_], layout: TaskLayout) -> None:
    if not good.all():
        row, t = np.argwhere(~good)[0]
        rule = "finite predictions" if what == "probabilities" else "finite, or NaN where missing,"
        raise InvalidArgumentError(
            f"{what} of the regression task {layout.names[t]!r} must be {rule}; row {row} holds {values[row, t]}"
        )


def check_one_output(layout: TaskLayout) -> None:
    """Raise InvalidArgumentError for a regression task of several outputs, whose targets do not fit one column."""
    for name, kind, count in zip(layout.names, layout.kinds, layout.num_classes, strict=True):
        if kind == "regression" and count != 1:
            raise InvalidArgumentError(
                f"layout must give regression tasks one output each here; {name!r} has {count} "
                "(make each of them a task)"
            )
