"""What a data map checks of probabilities that were computed elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pymtg import _faults
from pymtg._checks import check_sample_ids, check_tensor
from pymtg._reference import check_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError
from pymtg.tasks import TaskLayout


def checked_update(
    probabilities: Tensor,
    sample_ids: Tensor,
    correct: Tensor | None,
    valid: Tensor | None,
    num_tasks: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities, right predictions and known labels ``[B, T]``; raises for shapes, dtypes and devices."""
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        raise InvalidTypeError(f"probabilities must be a floating-point tensor; got {_kind(probabilities)}")
    check_tensor(probabilities, "probabilities")
    if probabilities.dim() != 2 or probabilities.shape[1] != num_tasks:
        raise InvalidArgumentError(f"probabilities must be [B, {num_tasks}]; got {list(probabilities.shape)}")
    if probabilities.device != device:
        raise InvalidArgumentError(
            f"probabilities must be on the map's device {device}; they are on {probabilities.device}"
        )
    check_sample_ids(sample_ids, probabilities.shape[0], device)
    p = probabilities.detach().float()
    there = torch.ones_like(p, dtype=torch.bool) if valid is None else _mask(valid, "valid", p)
    hit = p > 0.5 if correct is None else _mask(correct, "correct", p)
    return p, hit, there


def checked_rows(
    p: Tensor, there: Tensor, sample_ids: Tensor, num_samples: int, layout: TaskLayout, missing: bool, defers: bool
) -> tuple[Tensor, Tensor]:
    """Return ids ``[B]`` to record at, and which rows to refuse; raises, or notes, what the map cannot take."""
    ids = sample_ids.long()
    if defers:
        ids = _noted(p, there, ids, num_samples, layout, missing=missing)
    else:
        _check_values(p, there, ids, num_samples, missing=missing)
    return ids, (~torch.isfinite(p) & there).any(1)


def note_ids(ids: Tensor, num_samples: int, layout: TaskLayout) -> Tensor:
    """Note ids outside the map on the device; return ids with -1 in their place."""
    stray = (ids < 0) | (ids >= num_samples)
    _faults.note(_faults.Fault.SAMPLE_ID, stray[:, None], ids[:, None], layout, num_samples)
    return torch.where(stray, -1, ids)


def _check_values(p: Tensor, there: Tensor, ids: Tensor, num_samples: int, *, missing: bool) -> None:
    """Raise for the first probability, missing label or id that the map cannot take."""
    outside = _outside(p, there)
    if bool(outside.any()):
        raise InvalidArgumentError(f"probabilities must lie in [0, 1]; got {p[outside][0].item()}")
    if not missing and not bool(there.all()):
        raise MissingLabelError(
            "valid marks missing labels, and the data map was built for complete labels; "
            "build it with DataMap(..., missing=True)"
        )
    check_ids(ids, num_samples)


def _noted(p: Tensor, there: Tensor, ids: Tensor, num_samples: int, layout: TaskLayout, *, missing: bool) -> Tensor:
    """Note such values on the device without reading them; return ids that leave the rows concerned out: -1."""
    outside = _outside(p, there)
    _faults.note(_faults.Fault.PROBABILITY, outside, p, layout)
    ids = note_places(there, ids, num_samples, layout, missing=missing)
    return torch.where(outside.any(1), -1, ids)


def note_places(there: Tensor, ids: Tensor, num_samples: int, layout: TaskLayout, *, missing: bool) -> Tensor:
    """Note ids outside the map, and labels that a map of complete ones misses; return ids with -1 for the rows."""
    ids = note_ids(ids, num_samples, layout)
    if missing:
        return ids
    _faults.note(_faults.Fault.MISSING, ~there, there, layout)
    return torch.where(there.all(1), ids, -1)


def _kind(value: Any) -> str:
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _mask(mask: Tensor, what: str, like: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise InvalidTypeError(f"{what} must be a bool tensor; got {_kind(mask)}")
    check_tensor(mask, what)
    if mask.shape != like.shape or mask.device != like.device:
        raise InvalidArgumentError(
            f"{what} must be {list(like.shape)} on {like.device}; got {list(mask.shape)} on {mask.device}"
        )
    return mask


def _outside(p: Tensor, there: Tensor) -> Tensor:
    return there & ((p < 0) | (p > 1)) & torch.isfinite(p)
