"""The validation score that training watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pymtg._task_split import TaskLossFunction
from pymtg.branched_loss import BranchedLoss
from pymtg.data.arrays import known_targets
from pymtg.errors import InvalidArgumentError
from pymtg.metrics import LOWER_IS_BETTER, METRICS, default_metric, metrics_of, score
from pymtg.tasks import TaskLayout
from pymtg.trainers._predict import class_probabilities

__all__ = ["check_monitor", "monitor_name", "monitored", "weighted_score"]


def check_monitor(name: str | None, layout: TaskLayout) -> None:
    """Raise InvalidArgumentError for a metric that no task of the layout has."""
    if name not in (None, "loss", *metrics_of(layout)):
        kind = "regression" if name in METRICS else "classification"
        raise InvalidArgumentError(f"monitor must suit the tasks, which are all of the kind {kind}; got {name!r}")


def monitor_name(name: str | None, layout: TaskLayout) -> str:
    """Return what a monitor is called, the default one by the metric that it leads with."""
    return default_metric(layout) if name is None else name


def monitored(
    name: str | None,
    logits: torch.Tensor,
    targets: torch.Tensor,
    layout: TaskLayout,
    losses: Mapping[str, str | TaskLossFunction] | None = None,
) -> tuple[float, ...]:
    """Return the T task scores of a monitor: more is better; NaN where a task's is not defined.

    A metric by name, with its sign turned where lower is better; ``"loss"``, the negative of the trained loss
    (`losses` by task name, where they are not the default ones); None for balanced accuracy of the classification
    and R^2 of the regression tasks, both 1 at best.
    """
    if name == "loss":
        loss = BranchedLoss(layout, losses)
        loss(logits[None], targets, logits.new_ones(layout.num_tasks, 1))
        assert loss.task_losses is not None
        known = known_targets(targets, layout).any(dim=0)
        return tuple(torch.where(known, -loss.task_losses[:, 0], torch.nan).tolist())
    scores = score(class_probabilities(logits, layout).cpu(), targets.cpu(), layout)
    of = [default_metric(layout.select([task])) if name is None else name for task in layout.names]
    found = [scores.tasks[task].get(metric, float("nan")) for task, metric in zip(layout.names, of, strict=True)]
    return tuple(-figure if name in LOWER_IS_BETTER else figure for figure in found)


def weighted_score(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of the defined scores weighted by `weights`; NaN where none is defined or weighs anything."""
    pairs = [(s, w) for s, w in zip(scores, weights, strict=True) if s == s]
    total = sum(w for _, w in pairs)
    return sum(s * w for s, w in pairs) / total if total > 0 else float("nan")
