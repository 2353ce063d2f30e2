"""The layout of a batch whose tasks nobody described."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout

__all__ = ["layout_of_batch"]


def layout_of_batch(logits: Any, targets: Any) -> TaskLayout:
    """Return the layout of logits and targets that can be read in one way only.

    Class numbers ``[B]`` with logits ``[B, C]``, C >= 2, are one softmax task called ``"label"``; targets of the shape
    of the logits are one-logit tasks ``"task0"``, ``"task1"`` and so on (one, ``"label"``, for ``[B]`` or ``[B, 1]``).

    Raises
    ------
    InvalidArgumentError
        For anything else.
    """
    if isinstance(logits, Tensor) and isinstance(targets, Tensor):
        columns = logits.shape[1] if logits.dim() == 2 else 1 if logits.dim() == 1 else 0
        whole = not targets.is_floating_point()
        if targets.dim() == 1 or (targets.dim() == 2 and targets.shape[1] == 1):
            if columns == 1:
                return TaskLayout.binary(["label"])
            if columns > 1 and whole:
                return TaskLayout(["label"], [columns])
        elif targets.dim() == 2 and targets.shape[1] == columns:
            return TaskLayout.binary([f"task{t}" for t in range(columns)])
    raise InvalidArgumentError(
        f"layout must be given: logits {_shape(logits)} and targets {_shape(targets)} do not say which column is whose"
    )


def _shape(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
