"""The CUDA backend: hands tensors to ``pymtg._cuda`` by address, with the current stream.

Nothing here waits for the device: what is wrong with targets or sample ids is noted in the device's fault buffer
(:mod:`pymtg._faults`) and raised where the host reads. Scratch memory comes from torch's allocator, so that calls are
legal while a CUDA graph is captured, once a layout has been used on the device with as many rows.
"""

from __future__ import annotations

import importlib
import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pymtg import _reference
from pymtg._faults import fault_buffer
from pymtg._lasting import Lasting, lasting
from pymtg._reference import MapState
from pymtg.errors import BackendError
from pymtg.tasks import TaskLayout

_LOGIT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_TARGET_TYPES = {torch.uint8: 0, torch.bool: 0, torch.int32: 1, torch.int64: 2}
_TABLES_OF_ROWS = 4


class _Plan:
    """A layout on a device: the tensors that the kernels read, and how batches are cut up."""

    def __init__(self, kernels: ModuleType, layout: TaskLayout, device: torch.device) -> None:
        def on_device(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.kernels, self.device = kernels, device
        self.offsets = list(layout.offsets)
        classes = layout.num_classes
        positive, by_class = layout.pos_weight, layout.class_weights
        tensors = [
            on_device(self.offsets, torch.int64),
            None if positive is None else on_device([1.0 if w is None else w for w in positive], torch.float32),
            None
            if by_class is None
            else on_device(
                [
                    weight
                    for c, weights in zip(classes, by_class, strict=True)
                    for weight in (weights if weights is not None else (1.0,) * c)
                ],
                torch.float32,
            ),
            torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(classes)).to(device, torch.int32),
        ]
        self.plan = kernels.LayoutPlan(
            layout.num_tasks,
            layout.num_logits,
            *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
            max(classes) > kernels.most_byte_classes,
            layout.handle,
        )
        self._by_rows: dict[int, Any] = {}
        self._by_cut: dict[tuple[int, ...], Any] = {}
        self.tensors = Lasting(device)
        self.tensors.keep(*tensors)

    def tiles(self, rows: int) -> Any:
        """Return how a batch of so many rows is cut up."""
        tiles = self._by_rows.get(rows)
        if tiles is None:
            starts, tile_rows, whole, floats = self.kernels.tiling(self.offsets, rows)
            tiles = self._by_cut.get(key := (tile_rows, *starts))
            if tiles is None:
                on_device = lasting(lambda: torch.tensor(starts, dtype=torch.int32, device=self.device), self.device)
                self.tensors.keep(on_device)
                tiles = self.kernels.Tiles(on_device.data_ptr(), len(starts) - 1, tile_rows, whole, floats)
                self._by_cut[key] = tiles
            self._by_rows[rows] = tiles
        return tiles


class CudaBackend:
    """The functions of a backend over a build of the kernels: ``pymtg._cuda``, or its emulation in tests."""

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels = kernels
        self._plans: dict[tuple[int, torch.device], _Plan] = {}

    def cross_entropy(
        self,
        logits: Tensor,
        targets: Tensor,
        layout: TaskLayout,
        *,
        ignore_index: int = -100,
        weights: Tensor | None = None,
        state: MapState | None = None,
        sample_ids: Tensor | None = None,
        need_gradient: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`pymtg._reference.cross_entropy`; float64 logits are left to it."""
        if logits.dtype == torch.float64:
            return _reference.cross_entropy(
                logits,
                targets,
                layout,
                ignore_index=ignore_index,
                weights=weights,
                state=state,
                sample_ids=sample_ids,
                need_gradient=need_gradient,
            )
        losses = logits.new_empty(layout.num_tasks, dtype=torch.float32)
        gradient = logits.new_empty(tuple(logits.shape) if need_gradient else (0,), dtype=torch.float32)
        recording = None if state is None else (state, sample_ids)
        self._step(logits, targets, layout, ignore_index, weights, recording, losses, gradient)
        return losses, gradient

    def assigned_cross_entropy(
        self,
        logits: Tensor,
        targets: Tensor,
        assignment: Tensor,
        layout: TaskLayout,
        *,
        ignore_index: int = -100,
        need_gradient: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :func:`pymtg._reference.assigned_cross_entropy`: a step a head. float64 and shares per row go there."""
        if logits.dtype == torch.float64 or assignment.dim() == 3:
            return _reference.assigned_cross_entropy(
                logits, targets, assignment, layout, ignore_index=ignore_index, need_gradient=need_gradient
            )
        heads = len(logits)
        shares = assignment.float()
        losses = shares.new_empty(heads, layout.num_tasks)
        gradient = logits.new_empty(tuple(logits.shape) if need_gradient else (heads, 0), dtype=torch.float32)
        for k in range(heads):
            self._step(logits[k], targets, layout, ignore_index, shares[:, k], None, losses[k], gradient[k])
        total = (shares * losses.T).sum()
        return total, losses.T.contiguous(), gradient if need_gradient else gradient.flatten(), shares.new_empty(0)

    def _step(
        self,
        logits: Tensor,
        targets: Tensor,
        layout: TaskLayout,
        ignore_index: int,
        weights: Tensor | None,
        recording: tuple[MapState, Tensor | None] | None,
        losses: Tensor,
        gradient: Tensor,
    ) -> None:
        """Write the losses ``[T]`` and, unless it is empty, the gradient ``[B, num_logits]``; record."""
        device, rows = logits.device, len(logits)
        if rows == 0:
            losses.zero_()
            return
        state, sample_ids = (None, None) if recording is None else recording
        y = targets if targets.dtype in _TARGET_TYPES else targets.int()
        factors = None if weights is None else weights.to(torch.float32).contiguous()
        ids = _ids(sample_ids) if state is not None else None
        order = self._order(ids)
        plan = self._plan(layout, device)
        tiles = plan.tiles(rows)
        plan.tensors.about_to_be_read()
        size = self.kernels.scratch_bytes(plan.plan, tiles, rows, state is not None)
        scratch = torch.empty(size, dtype=torch.uint8, device=device)
        self._check(
            self.kernels.cross_entropy(
                plan.plan,
                tiles,
                *_place(device),
                logits.data_ptr(),
                _LOGIT_TYPES[logits.dtype],
                rows,
                *logits.stride(),
                y.data_ptr(),
                _TARGET_TYPES[y.dtype],
                *y.stride(),
                ignore_index,
                0 if factors is None else factors.data_ptr(),
                losses.data_ptr(),
                gradient.data_ptr() if gradient.numel() else 0,
                *_id_arguments(ids, order),
                *_addresses(state),
                scratch.data_ptr(),
                fault_buffer(device).data_ptr(),
            )
        )

    def record(
        self,
        state: MapState,
        gold: Tensor,
        right: Tensor,
        valid: Tensor,
        sample_ids: Tensor,
        refused: Tensor | None = None,
    ) -> None:
        """See :func:`pymtg._reference.record`."""
        rows, tasks = gold.shape
        if rows == 0:
            return
        device = gold.device
        gold = gold.float().abs()  # the sign of a zero would be read as "right"
        signed = torch.where(valid, torch.where(right, -gold, gold), torch.nan).contiguous()
        flags = torch.zeros(rows, dtype=torch.int32, device=device) if refused is None else refused.int()
        ids = _ids(sample_ids)
        order = self._order(ids)
        memory = torch.empty((_TABLES_OF_ROWS, rows), dtype=torch.int32, device=device)
        # Of a layout, recording needs the number of tasks alone.
        plan = self.kernels.LayoutPlan(tasks, 0, 0, 0, 0, 0, False, 0)
        self._check(
            self.kernels.record(
                plan,
                *_place(device),
                signed.data_ptr(),
                flags.data_ptr(),
                rows,
                *_id_arguments(ids, order),
                *_addresses(state),
                memory.data_ptr(),
                fault_buffer(device).data_ptr(),
            )
        )

    def scale_gradient(self, gradient: Tensor, upstream: Tensor, layout: TaskLayout) -> Tensor:
        """See :func:`pymtg._reference.scale_gradient`."""
        if gradient.dtype == torch.float64:
            return _reference.scale_gradient(gradient, upstream, layout)
        gradient = gradient.contiguous()
        out = torch.empty_like(gradient)
        self._scale(gradient, upstream, layout, out)
        return out

    def scale_gradient_(self, gradient: Tensor, upstream: Tensor, layout: TaskLayout) -> None:
        """Scale in place, by upstream gradients ``[T]`` or one for all; what they are one for is not touched."""
        if gradient.dtype == torch.float64:
            gradient.copy_(
                gradient * upstream if upstream.dim() == 0 else self.scale_gradient(gradient, upstream, layout)
            )
        else:
            self._scale(gradient, upstream, layout, gradient)

    def _scale(self, gradient: Tensor, upstream: Tensor, layout: TaskLayout, out: Tensor) -> None:
        if gradient.numel() == 0:
            return
        factors = upstream.to(torch.float32).contiguous()
        plan = self._plan(layout, gradient.device)
        plan.tensors.about_to_be_read()
        self._check(
            self.kernels.scale_gradient(
                plan.plan,
                *_place(gradient.device),
                gradient.data_ptr(),
                factors.data_ptr(),
                upstream.dim() == 0,
                out.data_ptr(),
                gradient.shape[0],
            )
        )

    def _order(self, ids: Tensor | None) -> Tensor | None:
        """Return the rows sorted by id, int32 ``[B]``, where they are too many for the kernels to find equal ids."""
        if ids is None or len(ids) <= self.kernels.most_hashed:
            return None
        return torch.sort(ids, stable=True).indices.int()

    def _plan(self, layout: TaskLayout, device: torch.device) -> _Plan:
        key = (layout.handle, device)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = lasting(lambda: _Plan(self.kernels, layout, device), device)
            weakref.finalize(layout, self._plans.pop, key, None)
        return plan

    def _check(self, error: int) -> None:
        if error:
            raise BackendError(f"CUDA kernels could not be launched: {self.kernels.error_name(error)}")


def _place(device: torch.device) -> tuple[int, int]:
    """Device number and the handle of its current stream."""
    if device.type != "cuda":  # emulated
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _ids(sample_ids: Tensor | None) -> Tensor:
    assert sample_ids is not None
    ids = sample_ids if sample_ids.dtype in (torch.int32, torch.int64) else sample_ids.long()
    return ids.contiguous()


def _id_arguments(ids: Tensor | None, order: Tensor | None) -> tuple[int, bool, int]:
    if ids is None:
        return 0, False, 0
    return ids.data_ptr(), ids.dtype == torch.int64, 0 if order is None else order.data_ptr()


def _addresses(state: MapState | None) -> tuple[int, int, bool, int, int]:
    if state is None:
        return 0, 0, False, 0, 0
    return (
        state.words.data_ptr(),
        state.counts.data_ptr(),
        state.missing,
        state.rejected.data_ptr(),
        state.words.shape[0],
    )


def built_kernels() -> ModuleType | None:
    """Return ``pymtg._cuda`` where this installation was built with a CUDA compiler."""
    try:
        return importlib.import_module("pymtg._cuda")
    except ModuleNotFoundError:
        return None


_kernels = built_kernels()
if _kernels is not None:
    _built = CudaBackend(_kernels)
    cross_entropy, assigned_cross_entropy, record = _built.cross_entropy, _built.assigned_cross_entropy, _built.record
    scale_gradient, scale_gradient_ = _built.scale_gradient, _built.scale_gradient_
