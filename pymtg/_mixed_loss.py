"""The losses of a layout with tasks of several kinds, for :class:`pymtg.MultiTaskLoss`, and what a data map records."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pymtg._reference import _gold, columns_of
from pymtg._regression_metrics import check_one_output
from pymtg._task_losses import class_numbers, column_losses, known
from pymtg._task_split import TaskSplit, called, pick
from pymtg._task_split import columns_of as output_columns
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.functional import multitask_cross_entropy
from pymtg.tasks import TaskLayout

__all__ = ["check_split", "gold_values", "mixed_losses"]


def check_split(split: TaskSplit, layout: TaskLayout) -> None:
    """Raise InvalidArgumentError where a loss needs more than a row of numbers for outputs and one target a row."""
    check_one_output(layout)
    dense = next((layout.names[t] for t, loss in split.single.items() if not callable(loss)), None)
    if dense is not None:
        raise InvalidArgumentError(f"losses must be of one target a row here; {dense!r} has 'dense_cross_entropy'")


def mixed_losses(
    split: TaskSplit,
    layout: TaskLayout,
    outputs: Tensor,
    targets: Tensor,
    ignore_index: int,
    backend: str | None,
) -> Tensor:
    """Return ``[T]`` losses of outputs ``[B, num_logits]`` and targets ``[B, T]``, each by its own rule."""
    order: list[int] = []
    parts: list[Tensor] = []
    if split.fused_layout is not None:
        labels = class_numbers(pick(targets, split.fused), ignore_index, split.fused_layout.names)
        fused = pick(outputs, output_columns(layout, split.fused))
        parts.append(
            multitask_cross_entropy(fused, labels, split.fused_layout, ignore_index=ignore_index, backend=backend)
        )
        order.extend(split.fused)
    for kind, tasks in split.columns.items():
        predictions = pick(outputs, output_columns(layout, tasks))
        parts.append(column_losses(kind, predictions.unsqueeze(0), pick(targets, tasks)).squeeze(0).sum(0))
        order.extend(tasks)
    for task, loss in split.single.items():
        assert callable(loss)
        parts.append(_called(loss, outputs[:, layout.columns(task)], targets[:, task], layout.names[task]))
        order.append(task)
    dtype = torch.float64 if outputs.dtype == torch.float64 else torch.float32
    joined = torch.cat([part.to(dtype) for part in parts])
    return pick(joined, sorted(range(len(order)), key=order.__getitem__))


def gold_values(
    layout: TaskLayout, outputs: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a map records of a batch: values ``[B, T]``, right predictions and known labels, both bool.

    A classification task's value is the gold-label probability. A regression task's is ``exp(-(y - f)^2 / 2)``, the
    likelihood of its target y under a Gaussian of deviation 1 around the prediction f, relative to its peak: 1 where f
    hits, 0.61 where it is one unit of the targets off. It is right where that is above a half, as for two classes:
    ``|y - f| < 1.18``. Values are NaN where the loss is not finite, for which a map refuses the row.
    """
    outputs = outputs.detach()
    x = outputs if outputs.dtype == torch.float64 else outputs.float()
    order: list[int] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for kind, tasks in layout.by_kind().items():
        part = pick(x, output_columns(layout, tasks))
        found = _likelihoods if kind == "regression" else _probabilities(layout.select(tasks), ignore_index)
        parts.append(found(part, pick(targets, tasks)))
        order.extend(tasks)
    if len(parts) == 1:
        return parts[0]
    back = sorted(range(len(order)), key=order.__getitem__)
    p, right, valid = (pick(torch.cat(columns, 1), back) for columns in zip(*parts, strict=True))
    return p, right, valid


def _likelihoods(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    square = (predictions - targets.to(predictions.dtype)).square()
    p = torch.where(torch.isfinite(square), (-square / 2).exp(), torch.nan)
    return p, p > 0.5, known(targets)


def _probabilities(layout: TaskLayout, ignore_index: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    def found(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels = class_numbers(targets, ignore_index, layout.names)
        valid = known(labels, ignore_index)
        gold, log_gold, _, right = _gold(
            logits, torch.where(valid, labels, 0).long(), columns_of(layout, logits.device)
        )
        return torch.where(torch.isfinite(log_gold), gold, torch.nan), right, valid

    return found


def _called(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    value = called(loss, outputs, targets, name)
    if not isinstance(value, Tensor):
        raise InvalidTypeError(f"losses must return a tensor; that of {name!r} returned {type(value).__name__}")
    if value.numel() != 1:
        raise InvalidArgumentError(f"losses must return a scalar; that of {name!r} returned shape {list(value.shape)}")
    return value.reshape(1)
