"""The validation score that training watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pymtg.data import IGNORE_INDEX
from pymtg.functional import multitask_cross_entropy
from pymtg.metrics import score
from pymtg.tasks import TaskLayout
from pymtg.trainers._predict import class_probabilities

__all__ = ["monitored", "weighted_score"]


def monitored(name: str, logits: torch.Tensor, targets: torch.Tensor, layout: TaskLayout) -> tuple[float, ...]:
    """Return the T task scores of a monitor by name: a metric, or the negative loss; NaN where it is not defined."""
    if name == "loss":
        losses = -multitask_cross_entropy(logits, targets, layout)
        known = (targets != IGNORE_INDEX).any(dim=0)
        return tuple(torch.where(known, losses, torch.nan).tolist())
    scores = score(class_probabilities(logits, layout).cpu(), targets.cpu(), layout)
    return tuple(scores.tasks[task][name] for task in layout.names)


def weighted_score(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of the defined scores weighted by `weights`; NaN where none is defined or weighs anything."""
    pairs = [(s, w) for s, w in zip(scores, weights, strict=True) if s == s]
    total = sum(w for _, w in pairs)
    return sum(s * w for s, w in pairs) / total if total > 0 else float("nan")
