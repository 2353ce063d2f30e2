"""Losses of tasks that the fused operator does not serve: pure functions in plain torch, of K stacked networks at once.

Arithmetic is float32 for half precision and float32, float64 for float64. Missing targets (NaN, or `ignore_index` of a
dense map) add nothing to loss or gradient, whatever the output there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pymtg._checks import labels_there
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["COLUMN_LOSSES", "LOSSES", "class_numbers", "column_losses", "known", "row_losses"]

COLUMN_LOSSES = ("mse", "l1")
LOSSES = (*COLUMN_LOSSES, "dense_cross_entropy")


def row_losses(kind: str, outputs: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Return what each row adds to a task's loss under each of K networks.

    Parameters
    ----------
    kind
        ``"mse"`` or ``"l1"``: the mean square or magnitude of the difference over the batch's known entries.
        ``"dense_cross_entropy"``: the mean of ``-log softmax(outputs)[target]`` over the batch's known places.
    outputs
        ``[K, B, ...]``, or ``[K, B, C, ...]`` with C >= 2 classes for ``"dense_cross_entropy"``; floating point.
    targets
        ``[B, ...]``: floating, NaN where missing; class numbers of an integer dtype for ``"dense_cross_entropy"``.
        Shared by the K networks and stored once. A last dimension of 1 in outputs may be absent here.
    ignore_index
        What stands for a missing class.

    Returns
    -------
    Tensor
        ``[K, B]``; its sum over B is the loss, so each entry is divided by the number of known entries of the whole
        batch already; 0 where nothing is known.

    Raises
    ------
    InvalidArgumentError
        For an unknown kind, shapes that do not fit, or (seen on the CPU only) a class that is not there.
    InvalidTypeError
        For outputs or regression targets that are not floating point, or classes that are.
    """
    if kind == "dense_cross_entropy":
        places, valid = _dense_cross_entropy(outputs, targets, ignore_index)
    elif kind in COLUMN_LOSSES:
        places, valid = _differences(kind, outputs, targets)
    else:
        raise InvalidArgumentError(f"kind must be one of {', '.join(map(repr, LOSSES))}; got {kind!r}")
    return places.unsqueeze(-1).flatten(2).sum(2) / _at_least_one(valid.sum(), places)


def column_losses(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return what each row adds to the losses of n one-column tasks under each of K networks, all at once.

    As :func:`row_losses` of each column, for ``"mse"`` and ``"l1"``: `outputs` ``[K, B, n]``, `targets` ``[B, n]``;
    returns ``[K, B, n]``, each column divided by its own number of known entries.
    """
    if kind not in COLUMN_LOSSES:
        raise InvalidArgumentError(f"kind must be one of {', '.join(map(repr, COLUMN_LOSSES))}; got {kind!r}")
    if outputs.dim() != 3 or outputs.shape[1:] != targets.shape:
        raise InvalidArgumentError(
            f"outputs must be [K, B, n] and targets [B, n]; got {list(outputs.shape)} and {list(targets.shape)}"
        )
    places, valid = _differences(kind, outputs, targets)
    return places / _at_least_one(valid.sum(0), places)


def known(targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return where a target is there, bool, in the shape of `targets`: not NaN, or not `ignore_index` of integers."""
    return ~targets.isnan() if targets.is_floating_point() else labels_there(targets, ignore_index)


def class_numbers(targets: Tensor, ignore_index: int, names: Sequence[str]) -> Tensor:
    """Return class numbers as integers; floating ones hold NaN (or `ignore_index`) where missing.

    `targets` are ``[B, T]`` of the tasks called `names`, or ``[B, ...]`` of one. Raises InvalidArgumentError for
    a fraction or an infinity, seen on the CPU only: elsewhere it would wait for the device.
    """
    if not targets.is_floating_point():
        return targets
    missing = targets.isnan()
    there = torch.where(missing, 0, targets)
    if targets.device.type == "cpu" and not torch.compiler.is_compiling() and bool((there.frac() != 0).any()):
        place = (there.frac() != 0).nonzero()[0].tolist()
        name = names[0] if len(names) == 1 else names[place[1]]
        raise InvalidArgumentError(
            f"targets must be class numbers, or NaN where missing, for task {name!r}; "
            f"row {place[0]} holds {targets[tuple(place)].item()}"
        )
    return torch.where(missing, ignore_index, there.long())


def _differences(kind: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss at each entry, 0 where the target is missing, and where it is known (without K)."""
    predictions = _arithmetic(outputs)
    if predictions.dim() == targets.dim() + 2 and predictions.shape[-1] == 1:
        predictions = predictions.squeeze(-1)
    if predictions.dim() < 2 or predictions.shape[1:] != targets.shape:
        raise InvalidArgumentError(
            f"outputs must be [K, ...] around targets of shape {list(targets.shape)}; got {list(outputs.shape)}"
        )
    if not targets.is_floating_point():
        raise InvalidTypeError(f"targets must be floating point, NaN where missing; got {targets.dtype}")
    valid = known(targets)
    # Before anything is squared: what masks a NaN afterwards leaves it in the gradient.
    difference = torch.where(valid, predictions - torch.where(valid, targets, 0).to(predictions.dtype), 0)
    return (difference.square() if kind == "mse" else difference.abs()), valid


def _dense_cross_entropy(outputs: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    logits = _arithmetic(outputs)
    if targets.is_floating_point() or targets.is_complex():
        raise InvalidTypeError(f"targets must be class numbers of an integer dtype; got {targets.dtype}")
    shape = (*logits.shape[1:2], *logits.shape[3:])
    if logits.dim() < 3 or logits.shape[2] < 2 or shape != targets.shape:
        raise InvalidArgumentError(
            f"outputs must be [K, B, C, ...] with C >= 2 classes and targets [B, ...]; "
            f"got {list(outputs.shape)} and {list(targets.shape)}"
        )
    classes = logits.shape[2]
    valid = known(targets, ignore_index)
    logits = torch.where(valid.unsqueeze(1), logits, 0)  # as in _differences: NaN would stay in the gradient
    chosen = torch.where(valid, targets, 0).long()
    if targets.device.type == "cpu" and bool(((chosen < 0) | (chosen >= classes)).any()):
        wrong = chosen[(chosen < 0) | (chosen >= classes)][0].item()
        raise InvalidArgumentError(f"targets must be 0..{classes - 1} or {ignore_index}; got {wrong}")
    at = chosen.unsqueeze(1).expand(len(logits), -1, 1, *targets.shape[1:])  # a view: K networks, one copy
    gold = F.log_softmax(logits, dim=2).gather(2, at).squeeze(2)
    return torch.where(valid, -gold, 0), valid


def _arithmetic(outputs: Tensor) -> Tensor:
    if not outputs.is_floating_point():
        raise InvalidTypeError(f"outputs must be floating point; got {outputs.dtype}")
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _at_least_one(count: Tensor, like: Tensor) -> Tensor:
    return count.clamp(min=1).to(like.dtype)
