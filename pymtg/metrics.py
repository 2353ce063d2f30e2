"""Figures of merit per task and their means: accuracy, balanced accuracy, F1, ROC AUC, average precision; R^2, RMSE.

The definitions are scikit-learn's, and so are the values (the tests compare them); but all binary tasks are computed
together, since a call per task and figure costs seconds for a thousand tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pymtg._gains import TaskFigures, normalized_gain, total_error
from pymtg._layout_checks import check_task_order, missing_as_nan
from pymtg._regression_metrics import REGRESSION_METRICS, check_one_output, regression_figures
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "REGRESSION_METRICS",
    "Scores",
    "TaskFigures",
    "best_value",
    "default_metric",
    "metrics_of",
    "normalized_gain",
    "score",
    "total_error",
]

METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "average_precision")
LOWER_IS_BETTER = ("rmse",)

_Matrix = npt.NDArray[np.floating[Any]]
_Labels = npt.NDArray[np.int64]
_Figures = npt.NDArray[np.float64]
_ENTRIES_AT_ONCE = 500_000  # bounds the memory of the sorted copies, whatever N and T are


@dataclass(frozen=True)
class Scores:
    """What :func:`score` returns.

    Parameters
    ----------
    mean
        Per metric the mean over the tasks where it is defined; NaN where it is defined for none.
    tasks
        Per task, per metric, the figure; NaN where it is not defined.
    defined
        Per metric the number of tasks that went into the mean.
    """

    mean: dict[str, float]
    tasks: dict[str, dict[str, float]]
    defined: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"mean": {metric: figure}, "tasks": {name: {metric: figure}}}``, for JSON: None stands for NaN."""
        return {
            "mean": _without_nan(self.mean),
            "tasks": {name: _without_nan(figures) for name, figures in self.tasks.items()},
        }


def metrics_of(layout: TaskLayout) -> tuple[str, ...]:
    """Return the metrics that some task of the layout has by its kind, in the order of :class:`Scores`."""
    kinds = set(layout.kinds)
    return (METRICS if "classification" in kinds else ()) + (REGRESSION_METRICS if "regression" in kinds else ())


def default_metric(layout: TaskLayout) -> str:
    """Return the metric that leads where none was chosen: balanced accuracy, or R^2 where all tasks are regressions."""
    return "balanced_accuracy" if "classification" in layout.kinds else "r2"


def best_value(metric: str, values: Iterable[float]) -> float:
    """Return the best of some values of a metric, the lowest of an RMSE; NaN where none is finite."""
    best = min if metric in LOWER_IS_BETTER else max
    return best((value for value in values if math.isfinite(value)), default=math.nan)


def score(
    probabilities: torch.Tensor | npt.ArrayLike,
    targets: torch.Tensor | npt.ArrayLike,
    layout: TaskLayout,
    ignore_index: int = -100,
) -> Scores:
    """Score predicted probabilities against labels.

    Parameters
    ----------
    probabilities
        ``[N, layout.num_logits]`` in 0..1, its columns as the layout's logits: P(y = 1) for a one-logit task, C
        softmax probabilities otherwise. In the column of a regression task: its predictions, of any size.
    targets
        ``[N, T]`` class numbers; `ignore_index`, or NaN in a floating array, where a label is missing. Real numbers
        for a regression task, NaN where missing. What is masked (NumPy) or NA (pandas) is missing for both.
    layout
        The tasks.
    ignore_index
        What stands for a missing label.

    Returns
    -------
    Figures per task and their means. The predicted class is the most probable one (the first of several; for a
    one-logit task class 1 where P > 0.5). Balanced accuracy is the mean recall over the classes among the labels. F1,
    ROC AUC and average precision are of class 1 where there are two classes, else means over classes: F1 over those
    among the labels or predictions, the other two, one class against the rest, over those among the labels.
    Accuracy is defined where a task has a label, the others where its labels have two different values. Whether a
    figure is defined thus depends on the labels alone: methods scored on the same labels are averaged over the same
    tasks.

    A regression task has R^2, defined where its labels have two different values, and RMSE, where it has a label, and
    NaN for the other metrics; a classification task the other way round. Metrics that no task of the layout has are
    left out.

    Raises
    ------
    InvalidArgumentError
        If the shapes do not fit, a probability is NaN or outside 0..1, a label out of its task's range, a prediction
        not finite, or a regression task has several outputs.
    InvalidTypeError
        If the layout is not a TaskLayout or an array does not hold real numbers.

    Notes
    -----
    Balanced accuracy: Brodersen et al., ICPR 2010. Ties in the two ranking figures count as in scikit-learn: the curve
    has one point per distinct probability.
    """
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    check_task_order(targets, layout.names)
    p = _as_matrix(probabilities, "probabilities", layout.num_logits)
    y = _as_matrix(targets, "targets", layout.num_tasks)
    if len(y) != len(p):
        raise InvalidArgumentError(f"targets must have as many rows as probabilities ({len(p)}); got {len(y)}")
    if not layout.has_regression:
        return _collected(_classification_figures(p, y, layout, ignore_index), layout)
    check_one_output(layout)
    figures = np.full((len(metrics_of(layout)), layout.num_tasks), np.nan)
    for kind, tasks in layout.by_kind().items():
        part = layout.select(tasks)
        columns = [column for t in tasks for column in range(layout.offsets[t], layout.offsets[t + 1])]
        if kind == "regression":
            figures[-len(REGRESSION_METRICS) :, tasks] = regression_figures(p[:, columns], y[:, tasks], part)
        else:
            figures[: len(METRICS), tasks] = _classification_figures(p[:, columns], y[:, tasks], part, ignore_index)
    return _collected(figures, layout)


def _classification_figures(
    probabilities: npt.NDArray[Any], targets: npt.NDArray[Any], layout: TaskLayout, ignore_index: int
) -> _Figures:
    """Return ``[metrics, T]`` of classification tasks."""
    p = _checked_probabilities(probabilities, layout)
    y = _checked_targets(targets, layout, ignore_index)
    figures = np.full((len(METRICS), layout.num_tasks), np.nan)
    counts = np.array(layout.num_classes)
    binary = np.flatnonzero(counts <= 2)
    step = max(1, _ENTRIES_AT_ONCE // max(len(p), 1))
    for start in range(0, len(binary), step):
        tasks = binary[start : start + step]
        figures[:, tasks] = _binary_figures(*_binary_columns(p, tasks, layout), y[:, tasks].T)
    for t in np.flatnonzero(counts > 2):
        figures[:, t] = _multiclass_figures(p[:, layout.columns(int(t))], y[:, t])
    return figures


def _binary_columns(
    p: _Matrix, tasks: npt.NDArray[np.intp], layout: TaskLayout
) -> tuple[_Matrix, npt.NDArray[np.bool_]]:
    """Return ``[T, N]``: P(y = 1), and whether it is the predicted class."""
    first = np.array(layout.offsets)[tasks]
    two = np.array(layout.num_classes)[tasks] == 2
    positive = np.ascontiguousarray(p[:, first + two].T)
    rival = np.where(two[:, None], p[:, first].T, 0.5)
    return positive, positive > rival


def _binary_figures(positive: _Matrix, predicted: npt.NDArray[np.bool_], y: _Labels) -> _Figures:
    """Return ``[metrics, T]`` of ``[T, N]`` arrays; labels 0, 1 or -1 where missing."""
    is_one, is_zero = y == 1, y == 0
    tp, fn = (predicted & is_one).sum(1), (~predicted & is_one).sum(1)
    fp, tn = (predicted & is_zero).sum(1), (~predicted & is_zero).sum(1)
    accuracy = _ratio(tp + tn, tp + tn + fp + fn)
    balanced = (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2
    f1 = _ratio(2 * tp, 2 * tp + fp + fn)
    auc, precision = _ranking_figures(positive, is_one, is_zero)
    both = (tp + fn > 0) & (tn + fp > 0)
    rest = np.where(both, np.stack([balanced, f1, auc, precision]), np.nan)
    return np.concatenate([accuracy[None], rest])


def _ranking_figures(
    positive: _Matrix, is_one: npt.NDArray[np.bool_], is_zero: npt.NDArray[np.bool_]
) -> tuple[_Figures, _Figures]:
    """Return ROC AUC and average precision, each [T], of scores and labels ``[T, N]``; NaN where a class is absent."""
    if positive.shape[1] == 0:
        nothing = np.full(len(positive), np.nan)
        return nothing, nothing
    order = np.argsort(-positive, axis=1)  # unlabelled rows take part with weight zero
    ranked = np.take_along_axis(positive, order, axis=1)
    tp = np.take_along_axis(is_one, order, axis=1).cumsum(1)
    fp = np.take_along_axis(is_zero, order, axis=1).cumsum(1)
    # a point of the curve after each run of equal scores
    ends = np.ones(ranked.shape, dtype=bool)
    ends[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    tp_before, fp_before = _at_previous_end(tp, ends), _at_previous_end(fp, ends)
    new_tp, new_fp = tp - tp_before, fp - fp_before
    area = np.where(ends, new_fp * (tp + tp_before) / 2, 0).sum(1)
    steps = np.where(ends, new_tp * _ratio(tp, tp + fp), 0)
    total_tp, total_fp = tp[:, -1], fp[:, -1]
    return _ratio(area, total_tp * total_fp), _ratio(np.nan_to_num(steps).sum(1), total_tp)


def _at_previous_end(counts: npt.NDArray[np.int64], ends: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the running count at the last end before each position, 0 where there is none."""
    so_far = np.maximum.accumulate(np.where(ends, counts, 0), axis=1)  # counts never fall
    return np.concatenate([np.zeros((len(counts), 1), dtype=counts.dtype), so_far[:, :-1]], axis=1)


def _multiclass_figures(p: _Matrix, y: _Labels) -> _Figures:
    """Return ``[metrics]`` of one task's ``[N, C]`` probabilities and [N] labels, -1 where missing."""
    known = y >= 0
    p, y = p[known], y[known]
    figures = np.full(len(METRICS), np.nan)
    if len(y) == 0:
        return figures
    classes = p.shape[1]
    confusion = np.bincount(y * classes + p.argmax(1), minlength=classes * classes).reshape(classes, classes)
    hits, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = labelled > 0
    figures[0] = hits.sum() / len(y)
    if present.sum() < 2:
        return figures
    figures[1] = np.mean(hits[present] / labelled[present])
    seen = present | (predicted > 0)
    figures[2] = np.mean(2 * hits[seen] / (labelled + predicted)[seen])
    is_one = y == np.flatnonzero(present)[:, None]
    auc, precision = _ranking_figures(np.ascontiguousarray(p[:, present].T), is_one, ~is_one)
    figures[3], figures[4] = auc.mean(), precision.mean()
    return figures


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> _Figures:
    quotient: _Figures = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return quotient


def _collected(figures: _Figures, layout: TaskLayout) -> Scores:
    metrics = metrics_of(layout)
    defined = (~np.isnan(figures)).sum(1)
    mean = _ratio(np.nansum(figures, axis=1), defined)
    return Scores(
        mean=dict(zip(metrics, mean.tolist(), strict=True)),
        tasks={
            name: dict(zip(metrics, column, strict=True))
            for name, column in zip(layout, figures.T.tolist(), strict=True)
        },
        defined=dict(zip(metrics, defined.tolist(), strict=True)),
    )


def _without_nan(figures: dict[str, float]) -> dict[str, float | None]:
    return {metric: None if math.isnan(figure) else figure for metric, figure in figures.items()}


def _as_matrix(values: Any, what: str, width: int) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(missing_as_nan(values))
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{what} must hold real numbers; got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != width:
        raise InvalidArgumentError(f"{what} must have shape [samples, {width}]; got {array.shape}")
    return array


def _checked_probabilities(p: npt.NDArray[Any], layout: TaskLayout) -> _Matrix:
    p = p if p.dtype in (np.float32, np.float64) else p.astype(np.float64 if p.dtype.itemsize > 2 else np.float32)
    wrong = ~((p >= 0) & (p <= 1))  # NaN too
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        t = int(np.searchsorted(layout.offsets, column, side="right")) - 1
        raise InvalidArgumentError(
            f"probabilities must lie in 0..1; row {row} of task {layout.names[t]!r} holds {p[row, column]} "
            "(logits go through sigmoid or softmax first)"
        )
    return p


def _checked_targets(y: npt.NDArray[Any], layout: TaskLayout, ignore_index: int) -> _Labels:
    """Return labels ``[N, T]``, -1 where missing."""
    missing = (y == ignore_index) | (np.isnan(y) if y.dtype.kind == "f" else False)
    known = np.where(missing, 0, y)
    most = np.maximum(layout.num_classes, 2) - 1
    wrong = (known < 0) | (known > most) | (known != np.floor(known))
    if wrong.any():
        row, t = np.argwhere(wrong)[0]
        raise InvalidArgumentError(
            f"targets of task {layout.names[t]!r} must be class numbers in 0..{most[t]}, or {ignore_index} where "
            f"missing; row {row} holds {y[row, t]}"
        )
    return np.where(missing, -1, known).astype(np.int64)
