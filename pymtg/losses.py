"""The fused multi-task loss as a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pymtg._reference import MapState
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.functional import weighted_multitask_cross_entropy
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

__all__ = ["MultiTaskLoss"]


class MultiTaskLoss(nn.Module):
    """Weighted sum of the per-task cross-entropies; records a data map in training mode.

    Parameters
    ----------
    layout
        Which columns of the logits belong to which task.
    data_map
        Map to record into, in training mode (``loss.train()``) and unless paused. Not part of ``state_dict``.
    task_weights
        T non-negative weights; ones by default. A buffer: moves and is saved with the module.
    ignore_index
        The label that stands for "missing".
    backend
        As in :func:`pymtg.functional.multitask_cross_entropy`.

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

    def forward(self, logits: Tensor, targets: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """Return the weighted sum of the losses, a scalar; see :func:`pymtg.functional.multitask_cross_entropy`.

        `sample_ids` ``[B]`` are needed whenever this call records.
        """
        data_map = self.data_map if self.training and self.recording else None
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


def _weights(values: Tensor | Sequence[float] | None, layout: TaskLayout) -> Tensor | None:
    if values is None:
        return None
    try:
        weights = torch.as_tensor(values).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InvalidTypeError(f"task_weights must be numbers, one per task; got {values!r}") from None
    if not weights.is_floating_point():
        weights = weights.to(torch.get_default_dtype())
    if weights.shape != (layout.num_tasks,):
        raise InvalidArgumentError(
            f"task_weights must have one entry per task ({layout.num_tasks}); got {list(weights.shape)}"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InvalidArgumentError(f"task_weights must be finite and not negative; got {weights.tolist()}")
    return weights
