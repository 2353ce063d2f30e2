"""The fused multi-task loss as a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pymtg._checks import LOGIT_DTYPES, check_kind, check_sample_ids, check_targets, check_tensor
from pymtg._mixed_loss import check_split, gold_values, mixed_losses
from pymtg._once import in_backward
from pymtg._reference import MapState
from pymtg._task_split import TaskLossFunction, TaskSplit, split_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.functional import weighted_multitask_cross_entropy
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

__all__ = ["MultiTaskLoss"]


class MultiTaskLoss(nn.Module):
    """Weighted sum of the per-task losses; records a data map in training mode.

    Classification tasks have the cross-entropies of :func:`pymtg.functional.multitask_cross_entropy`, in one fused
    call; regression tasks the mean square or magnitude of the difference over the rows whose target is there. Where a
    layout has regression tasks, targets are one floating matrix: NaN where missing, class numbers as floats. The map
    then holds, for a regression task, ``exp(-(y - f)^2 / 2)`` of target y and prediction f, a likelihood relative to
    its peak (ours: data maps are defined for classes), in units of the targets, which should thus be standardised;
    right is a prediction where that is above a half.

    Parameters
    ----------
    layout
        Which columns of the logits belong to which task.
    data_map
        Map to record into, in training mode (``loss.train()``) and unless paused, under ``torch.no_grad()`` too (unlike
        :func:`pymtg.record`). ``model.eval()`` switches a loss only where it is a submodule of the model: elsewhere
        call ``loss.eval()`` before a validation. Not part of ``state_dict``.
    task_weights
        T non-negative weights; ones by default. A buffer: moves and is saved with the module.
    ignore_index
        The label that stands for "missing".
    backend
        As in :func:`pymtg.functional.multitask_cross_entropy`.
    losses
        By task name, losses other than the defaults: ``"mse"`` (the default) or ``"l1"`` for a regression task; for
        any task a function from outputs ``[B, C_t]`` and targets ``[B]``, missing ones as they are, to a scalar.

    Attributes
    ----------
    task_losses : Tensor or None
        ``[T]`` unweighted losses of the last call, detached, on their device.
    recording : bool
        Set to False to pause recording; :meth:`paused` does so for a ``with`` block.

    Examples
    --------
    >>> layout = TaskLayout.binary(["odd", "even"])
    >>> loss = MultiTaskLoss(layout)
    >>> loss(torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.long))
    tensor(1.3863)
    """

    task_weights: Tensor | None

    def __init__(
        self,
        layout: TaskLayout,
        data_map: DataMap | None = None,
        task_weights: Tensor | Sequence[float] | None = None,
        *,
        ignore_index: int = -100,
        backend: str | None = None,
        losses: Mapping[str, str | TaskLossFunction] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layout, TaskLayout):
            raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
        if data_map is not None:
            if not isinstance(getattr(data_map, "state", None), MapState):
                raise InvalidTypeError(f"data_map must be a DataMap; got {type(data_map).__name__}")
            if data_map.layout != layout:
                raise InvalidArgumentError("data_map must have the layout of the loss; theirs differ")
        self.layout = layout
        self.data_map = data_map
        self.ignore_index = ignore_index
        self.backend = backend
        self.recording = True
        self.task_losses: Tensor | None = None
        self.register_buffer("task_weights", _weights(task_weights, layout))
        self._split = _split(layout, losses)

    def forward(self, logits: Tensor, targets: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """Return the weighted sum of the losses, a scalar; see :func:`pymtg.functional.multitask_cross_entropy`.

        `sample_ids` ``[B]`` are needed whenever this call records.
        """
        data_map = self.data_map if self.training and self.recording else None
        if self._split is not None:
            return self._mixed(self._split, logits, targets, data_map, sample_ids)
        total, losses = weighted_multitask_cross_entropy(
            logits,
            targets,
            self.layout,
            self.task_weights,
            ignore_index=self.ignore_index,
            data_map=data_map,
            sample_ids=sample_ids,
            backend=self.backend,
        )
        self.task_losses = losses.detach()
        return total

    def _mixed(
        self, split: TaskSplit, logits: Tensor, targets: Tensor, data_map: DataMap | None, sample_ids: Tensor | None
    ) -> Tensor:
        layout = self.layout
        check_kind(logits, "logits", LOGIT_DTYPES)
        if logits.dim() != 2 or logits.shape[1] != layout.num_logits:
            raise InvalidArgumentError(f"logits must be [B, {layout.num_logits}]; got {list(logits.shape)}")
        check_targets(targets, len(logits), layout, logits.device)
        if data_map is not None:
            if sample_ids is None:
                raise InvalidArgumentError("sample_ids must be given with a data map; got None")
            check_sample_ids(sample_ids, len(logits), logits.device)
        losses = mixed_losses(split, layout, logits, targets, self.ignore_index, self.backend)
        if data_map is not None and sample_ids is not None and not in_backward():
            p, right, valid = gold_values(layout, logits, targets, self.ignore_index)
            data_map.update(p, sample_ids, correct=right, valid=valid, backend=self.backend)
        self.task_losses = losses.detach()
        weights = self.task_weights
        return losses.sum() if weights is None else torch.dot(losses, weights.to(losses.dtype))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside a ``with`` block."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def extra_repr(self) -> str:
        """Return what ``print(loss)`` shows between the brackets."""
        return f"{self.layout.num_tasks} tasks, {self.layout.num_logits} logits, data_map={self.data_map is not None}"


def _split(layout: TaskLayout, losses: Mapping[str, str | TaskLossFunction] | None) -> TaskSplit | None:
    """Return how the tasks are split; None where all go through the one fused call."""
    split = split_tasks(layout, losses)
    if len(split.fused) == layout.num_tasks:
        return None
    check_split(split, layout)
    return split


def _weights(values: Tensor | Sequence[float] | None, layout: TaskLayout) -> Tensor | None:
    if values is None:
        return None
    try:
        # A copy: groups' memberships are arrays that nobody may write to, of which torch warns.
        weights = values.detach().clone() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    except (TypeError, ValueError, RuntimeError):
        raise InvalidTypeError(f"task_weights must be numbers, one per task; got {values!r}") from None
    check_tensor(weights, "task_weights")
    if not weights.is_floating_point():
        weights = weights.to(torch.get_default_dtype())
    if weights.shape != (layout.num_tasks,):
        raise InvalidArgumentError(
            f"task_weights must have one entry per task ({layout.num_tasks}); got {list(weights.shape)}"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InvalidArgumentError(f"task_weights must be finite and not negative; got {weights.tolist()}")
    return weights
