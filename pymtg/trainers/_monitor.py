"""The validation score that training watches, on the device and without a host read."""

from __future__ import annotations

import torch

from pymtg.functional import multitask_cross_entropy
from pymtg.tasks import TaskLayout

__all__ = ["monitored", "weighted_score"]

_MISSING = -100


def monitored(name: str, logits: torch.Tensor, targets: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    """Return the T task scores (float32, more is better; NaN where no label is there) of a monitor by name."""
    if name == "loss":
        losses = -multitask_cross_entropy(logits, targets, layout).float()
        return torch.where((targets != _MISSING).any(dim=0), losses, torch.nan)
    gold = targets.long()
    known = gold != _MISSING
    hits = (_predicted(logits, layout) == gold) & known
    if name == "accuracy":
        return hits.sum(dim=0) / known.sum(dim=0)
    return _balanced_accuracy(hits, known, gold, layout)


def _predicted(logits: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    if set(layout.num_classes) == {1}:
        return (logits > 0).long()
    parts = [(p[:, 0] > 0).long() if p.shape[1] == 1 else p.argmax(dim=1) for p in layout.split(logits)]
    return torch.stack(parts, dim=1)


def _balanced_accuracy(hits: torch.Tensor, known: torch.Tensor, gold: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    """Mean over the classes that occur of the share of their samples that were hit."""
    classes = max(2, *layout.num_classes)
    shape = (layout.num_tasks, classes)
    at = (gold.where(known, 0) + classes * torch.arange(layout.num_tasks, device=gold.device)).flatten()
    zeros = torch.zeros(shape[0] * shape[1], device=gold.device)
    count = zeros.scatter_add(0, at, known.flatten().float()).view(shape)
    hit = zeros.scatter_add(0, at, hits.flatten().float()).view(shape)
    recall = torch.where(count > 0, hit / count, 0.0)
    return recall.sum(dim=1) / (count > 0).sum(dim=1)


def weighted_score(scores: list[float], weights: list[float]) -> float:
    """Return the mean of the defined scores weighted by `weights`; NaN where none is defined or weighs anything."""
    pairs = [(s, w) for s, w in zip(scores, weights, strict=True) if s == s]
    total = sum(w for _, w in pairs)
    return sum(s * w for s, w in pairs) / total if total > 0 else float("nan")
