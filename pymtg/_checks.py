"""What the functional forms check of their arguments before anything is computed: kinds, shapes, devices; no values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from pymtg._reference import MapState
from pymtg.errors import BackendError, InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    from pymtg.datamap import DataMap

LOGIT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.int16, torch.int8)
ID_DTYPES = (torch.int64, torch.int32)


def check_kind(value: Tensor, what: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless `value` is a dense tensor of one of the dtypes."""
    check_tensor(value, what)
    if value.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InvalidTypeError(f"{what} must have one of the dtypes {known}; got {value.dtype}")


def check_floating(value: Tensor, what: str) -> None:
    """Raise unless `value` is a dense floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InvalidTypeError(f"{what} must be a floating-point tensor; got {got}")
    check_tensor(value, what)


def check_tensor(value: Tensor, what: str) -> None:
    """Raise unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise InvalidTypeError(f"{what} must be a tensor; got {type(value).__name__}")
    if value.layout != torch.strided:  # sparse forms have no addresses to compute on
        raise InvalidTypeError(f"{what} must be a dense (strided) tensor; got {value.layout}")


def labels_there(targets: Tensor, ignore_index: int) -> Tensor:
    """Return where integer targets hold a label, bool; torch would find a uint8 156 equal to -100."""
    if targets.dtype != torch.bool:
        held = torch.iinfo(targets.dtype)
        if not held.min <= ignore_index <= held.max:
            return torch.ones_like(targets, dtype=torch.bool)
    return targets != ignore_index


def check_classification(layout: TaskLayout, advice: str = "") -> None:
    """Raise where a task is a regression, which is named."""
    if layout.has_regression:
        name = layout.names[layout.kinds.index("regression")]
        raise InvalidArgumentError(f"layout must hold classification tasks only, {name!r} is a regression{advice}")


def check_no_tangent(value: Tensor, what: str) -> None:
    """Raise for a tensor of forward-mode differentiation: torch would take an operator's result for a constant."""
    if not torch.compiler.is_compiling() and unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
        raise BackendError(
            f"{what} must not carry a tangent (torch.func.jvp): fused losses have no forward-mode derivative"
        )


def check_kinds(logits: Tensor, targets: Tensor, layout: TaskLayout, ignore_index: int) -> None:
    """Raise unless these are of the types that a fused loss takes."""
    check_kind(logits, "logits", LOGIT_DTYPES)
    check_no_tangent(logits, "logits")
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    check_classification(layout, "; MultiTaskLoss and BranchedLoss take both kinds")
    check_kind(targets, "targets", TARGET_DTYPES)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, torch.SymInt)):
        raise InvalidTypeError(f"ignore_index must be an integer; got {ignore_index!r}")
    if isinstance(ignore_index, int) and not -(2**63) <= ignore_index < 2**63:
        raise InvalidArgumentError(f"ignore_index must fit 64 bits; got {ignore_index}")


def check_targets(targets: Tensor, rows: int, layout: TaskLayout, device: torch.device) -> None:
    """Raise unless `targets` is a dense tensor ``[rows, T]`` on the logits' `device`."""
    check_tensor(targets, "targets")
    if targets.dim() != 2 or targets.shape[0] != rows or targets.shape[1] != layout.num_tasks:
        raise InvalidArgumentError(
            f"targets must be [{rows}, {layout.num_tasks}], a row per row of logits and a column per task; "
            f"got {list(targets.shape)}"
        )
    if targets.device != device:
        raise InvalidArgumentError(f"targets must be on the logits' device {device}; they are on {targets.device}")


def check_sample_ids(sample_ids: Tensor, rows: int, device: torch.device) -> None:
    """Raise unless `sample_ids` is an int64 or int32 tensor ``[rows]`` on `device`."""
    check_kind(sample_ids, "sample_ids", ID_DTYPES)
    if sample_ids.dim() != 1 or sample_ids.shape[0] != rows:
        raise InvalidArgumentError(f"sample_ids must be [{rows}], one per row; got {list(sample_ids.shape)}")
    if sample_ids.device != device:
        raise InvalidArgumentError(f"sample_ids must be on {device}; they are on {sample_ids.device}")


def check_map(logits: Tensor, layout: TaskLayout, data_map: DataMap, sample_ids: Tensor | None) -> None:
    """Raise unless the map fits the layout and the logits' device, and there are ids for it."""
    if not isinstance(getattr(data_map, "_state", None), MapState):
        raise InvalidTypeError(f"data_map must be a DataMap; got {type(data_map).__name__}")
    if data_map.layout is not layout and data_map.layout != layout:
        raise InvalidArgumentError(
            f"data_map must have the layout of the loss; it has {data_map.layout.num_tasks} tasks "
            f"({data_map.layout.num_logits} logits), the loss {layout.num_tasks} ({layout.num_logits} logits)"
            if data_map.layout.num_classes != layout.num_classes
            else "data_map must have the layout of the loss; theirs differ in names or weights"
        )
    if data_map.device != logits.device:
        raise InvalidArgumentError(
            f"data_map must be on the logits' device {logits.device}; it is on {data_map.device}"
        )
    if sample_ids is None:
        raise InvalidArgumentError("sample_ids must be given with a data map; got None")
    # Ids of a map in host memory need not go to the device first.
    at_home = data_map.storage is not None and isinstance(sample_ids, Tensor) and sample_ids.device.type == "cpu"
    check_sample_ids(sample_ids, logits.shape[0], sample_ids.device if at_home else logits.device)


def check_task_weights(task_weights: Tensor, layout: TaskLayout, logits: Tensor) -> None:
    """Raise unless the weights are constant floating-point numbers ``[T]`` on the logits' device."""
    check_floating(task_weights, "task_weights")
    if task_weights.shape != (layout.num_tasks,):
        raise InvalidArgumentError(f"task_weights must be [{layout.num_tasks}]; got {list(task_weights.shape)}")
    if task_weights.device != logits.device:
        raise InvalidArgumentError(f"task_weights must be on {logits.device}; they are on {task_weights.device}")
    if task_weights.requires_grad:
        raise InvalidArgumentError(
            "task_weights must not require a gradient; use (w * multitask_cross_entropy(...)).sum() to learn them"
        )
