"""From what a hooked module was called with, or returned, to detached logits ``[B, C]`` and labels ``[B, T]``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymtg._backend import backend_named, choose_backend
from pymtg._checks import labels_there
from pymtg._moving import to_device
from pymtg._reference import SOFT_LABEL, soft_label
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["MISSING", "Part", "Reader", "as_ids", "call_arguments", "joined", "output_logits"]

MISSING = -100
"""The label that stands for "missing" in all that a reader returns."""

Part = tuple[Tensor, Tensor]
"""Logits and class numbers, of one task or of all."""


@dataclass(frozen=True)
class Reader:
    """Checks logits and targets of one call and brings them into the operator's form.

    ``name`` is that of the (first) task; ``softmax`` marks the arguments of an ``nn.CrossEntropyLoss``.
    """

    name: str
    num_logits: int
    num_tasks: int
    ignore_index: int
    softmax: bool

    def read(self, logits: Any, targets: Any) -> Part:
        """Return detached logits ``[B, num_logits]`` and integer targets ``[B, num_tasks]``, MISSING where missing."""
        for value, what in ((logits, "logits"), (targets, "targets")):
            if not isinstance(value, Tensor):
                raise InvalidTypeError(f"{what} {self._of()} must be a tensor; got {type(value).__name__}")
        logits, targets = logits.detach(), targets.detach()
        if self.softmax and targets.is_floating_point():
            raise InvalidTypeError(
                f"targets {self._of()} must be class numbers; got class probabilities ({targets.dtype}), "
                "which have no gold label"
            )
        if logits.dim() == 1 and self.num_logits == 1:
            logits = logits[:, None]
        if targets.dim() == 1 and self.num_tasks == 1:
            targets = targets[:, None]
        self._check_shapes(logits, targets)
        return logits, self._class_numbers(to_device(targets, logits.device), logits.dtype)

    def _check_shapes(self, logits: Tensor, targets: Tensor) -> None:
        if logits.dim() != 2 or logits.shape[1] != self.num_logits:
            spatial = " (one prediction per sample: spatial outputs have no data map)" if logits.dim() > 2 else ""
            raise InvalidArgumentError(
                f"logits {self._of()} must be [B, {self.num_logits}]; got {list(logits.shape)}{spatial}"
            )
        if targets.shape != (logits.shape[0], self.num_tasks):
            raise InvalidArgumentError(
                f"targets {self._of()} must be [{logits.shape[0]}, {self.num_tasks}]"
                f"{f' or [{logits.shape[0]}]' if self.num_tasks == 1 else ''}; got {list(targets.shape)}"
            )

    def _class_numbers(self, targets: Tensor, logit_dtype: torch.dtype) -> Tensor:
        if targets.is_floating_point():
            targets = self._whole(targets, logit_dtype)
        if self.ignore_index == MISSING:
            return targets
        return targets.long().masked_fill(~labels_there(targets, self.ignore_index), MISSING)

    def _whole(self, targets: Tensor, logit_dtype: torch.dtype) -> Tensor:
        """Return floating-point labels as integers; NaN is a missing one. Where a backend defers errors, so is this."""
        labels = targets.to(torch.int32)
        # float64 logits are left by some to plain torch, which raises at once
        if logit_dtype != torch.float64 and backend_named(choose_backend(None, targets.device)).defers:
            rest = torch.where(targets.isnan(), self.ignore_index, SOFT_LABEL)
            return torch.where(labels.to(targets.dtype) == targets, labels, rest)
        if torch.equal(labels.to(targets.dtype), targets):
            return labels
        missing = torch.isnan(targets)
        soft = ~missing & (labels.to(targets.dtype) != targets)
        if bool(soft.any()):
            row, column = soft.nonzero()[0].tolist()
            found = f"row {row}, column {column} holds {targets[row, column].item():g}"
            raise soft_label(self._of(), found)
        return torch.where(missing, self.ignore_index, labels)

    def _of(self) -> str:
        return f"of task {self.name!r}" if self.num_tasks == 1 else "of the model"


def as_ids(sample_ids: Any) -> Tensor:
    """Return sample ids as an int64 or int32 tensor ``[B]``; a sequence or array of integers is taken too."""
    if isinstance(sample_ids, Tensor):
        ids = sample_ids.detach()
    elif isinstance(sample_ids, (Sequence, np.ndarray)) and not isinstance(sample_ids, (str, bytes)):
        array = np.asarray(sample_ids)
        if array.size and array.dtype.kind not in "iu":
            raise InvalidTypeError(f"sample_ids must be integers; got {array.dtype} in {sample_ids!r:.80}")
        ids = torch.from_numpy(array.astype(np.int64))
    else:
        raise InvalidTypeError(f"sample_ids must be a tensor or a sequence of integers; got {sample_ids!r:.80}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise InvalidTypeError(f"sample_ids must have one of the dtypes int64, int32; got {ids.dtype}")
    if ids.dim() != 1:
        raise InvalidArgumentError(f"sample_ids must be [B], one per row of the batch; got {list(ids.shape)}")
    return ids


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the first two arguments of a call ``loss(logits, targets)``, by position or by name."""
    given = args
    if kwargs and len(args) < 2:
        inner = getattr(module, "_orig_mod", module)  # a compiled one names no arguments
        given = tuple(inspect.signature(inner.forward).bind(*args, **kwargs).arguments.values())
    if len(given) < 2:
        raise InvalidArgumentError(
            f"loss_or_model must be called as loss(logits, targets) after recorder.ids(ids); {type(module).__name__} "
            f"was called with {len(given)} argument(s). For a model that returns logits call "
            "recorder.batch(ids, targets) instead"
        )
    return given[0], given[1]


def output_logits(output: Any, layout: TaskLayout) -> Any:
    """Return the logits in what a model returned: see :func:`pymtg.record`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if "logits" in output:
            return output["logits"]
        if all(name in output for name in layout.names):
            return torch.cat([_column(output[name], classes) for name, classes in _tasks(layout)], dim=1)
    elif hasattr(output, "logits"):
        return output.logits
    elif isinstance(output, (tuple, list)) and output:
        return output[0]
    raise InvalidTypeError(
        "loss_or_model must return logits: a tensor, a tuple that starts with one, an attribute or key 'logits', or a "
        f"dict by task name; got {type(output).__name__}"
    )


def joined(parts: Mapping[str, Part], layout: TaskLayout) -> Part:
    """Put the parts of the tasks side by side, ``[B, num_logits]`` and ``[B, T]``; absent tasks miss all labels."""
    any_logits, any_targets = next(iter(parts.values()))
    device = any_logits.device
    logits, targets = [], []
    for name, classes in _tasks(layout):
        part = parts.get(name)
        if part is None:
            part = (
                any_logits.new_zeros(any_logits.shape[0], classes),
                torch.full(any_targets.shape, MISSING, device=device),
            )
        logits.append(part[0].to(device))
        targets.append(part[1].to(device))
    return torch.cat(logits, dim=1), torch.cat(targets, dim=1)


def _tasks(layout: TaskLayout) -> zip[tuple[str, int]]:
    return zip(layout.names, layout.num_classes, strict=True)


def _column(logits: Tensor, classes: int) -> Tensor:
    return logits.detach()[:, None] if logits.dim() == 1 and classes == 1 else logits.detach()
