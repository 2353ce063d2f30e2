"""Launchers of the fused multi-task cross-entropy and the data map's update: two launches forward, one backward.

Nothing here waits for the device, reads a value of it or depends on one, so that every call can be captured in a CUDA
graph once its kernels are compiled. What a step needs beside its results is allocated by torch, in the order of
the current stream.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._gradient import gradient_kernel
from ._loss import loss_kernel
from ._record import finish_kernel, link_kernel
from .tiles import Plan

MOST_LINKED = 8192
"""Rows up to which equal ids are found by comparing all pairs, beside the loss; above it they are sorted."""
_LINK_ROWS = 16
_LANES = 1024
_MOST_BLOCKS = 2048
LOSS_REGISTERS: int | None = 128
"""Of a thread of `loss_kernel`, at most: four programs then fit a multiprocessor, whose loads keep the memory busy.

Left to itself the compiler takes 145 (Triton 3.7) to 203 (3.6), room for three or two. What it spills is 4 to 48 bytes.
Not measured yet: ``benchmarks/gpu_registers.py`` does.
"""
_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


class Recording(NamedTuple):
    """A data map's tensors and the rows that a batch writes to."""

    words: Tensor
    """int32 ``[M, 2, T]``."""
    counts: Tensor
    """int32 ``[M]`` for complete labels, int16 ``[M, T]`` else."""
    rejected: Tensor
    """int64 ``[1]``."""
    ids: Tensor
    """int64 or int32 ``[B]``, contiguous."""


def cross_entropy(
    plan: Plan,
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    recording: Recording | None,
    faults: Tensor,
    layout: int,
) -> tuple[Tensor, Tensor]:
    """Return losses ``[T]`` and numbers of valid labels ``[T]``, at least 1, in the arithmetic's dtype.

    Updates the map. `faults` is the device's fault buffer, `layout` the number that goes into it.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows, tasks = targets.shape
    if rows == 0:
        return logits.new_zeros(tasks, dtype=wide), logits.new_ones(tasks, dtype=wide)
    block_rows, blocks = _blocks(plan, rows)
    empty = logits.new_empty
    sums, counts = empty((blocks, tasks), dtype=wide), empty((blocks, tasks), dtype=torch.int32)
    losses, labels = empty(tasks, dtype=wide), empty(tasks, dtype=wide)
    programs = blocks * plan.num_tiles
    link_programs = 0
    gold = flags = links = ids = sums  # not looked at
    if recording is not None:
        gold, flags = empty((rows, tasks), dtype=torch.float32), empty((rows, plan.num_tiles), dtype=torch.uint8)
        ids = recording.ids
        links, link_programs = _links(ids)
    y = targets.view(torch.uint8) if targets.dtype == torch.bool else targets
    with _on(logits.device):
        loss_kernel[(programs + link_programs,)](
            logits, *logits.stride(), y, *y.stride(), plan.tiles, plan.offsets, plan.weights, plan.first_weight,
            ignore_index, rows, tasks, plan.num_tiles, block_rows, sums, counts, gold, flags, ids, links,
            0 if recording is None else recording.words.shape[0], faults, layout, programs,
            SHAPES=plan.shapes, MAX_ROWS=block_rows, MIXED=plan.mixed, WEIGHTED=plan.weights is not None,
            RECORD=recording is not None, COMPLETE=recording is not None and recording.counts.dim() == 1,
            ACC=_ACCUMULATORS[wide], num_warps=4, maxnreg=LOSS_REGISTERS,
        )  # fmt: skip
        _finish((sums, counts, losses, labels), (gold, flags, links), recording)
    return losses, labels


def gradient(
    plan: Plan,
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    labels: Tensor,
    upstream: Tensor,
    task_weights: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient ``[B, num_logits]``, in the logits' dtype or in `out`, contiguous.

    That of ``sum_t upstream_t w_t loss_t``, given `upstream` ``[T]`` or a scalar and constant task weights `w` or none.
    """
    rows = targets.shape[0]
    if out is None:
        out = torch.empty((rows, plan.num_logits), dtype=logits.dtype, device=logits.device)
    if rows == 0:
        return out
    block_rows, blocks = _blocks(plan, rows)
    y = targets.view(torch.uint8) if targets.dtype == torch.bool else targets
    with _on(logits.device):
        gradient_kernel[(blocks * plan.num_tiles,)](
            logits, *logits.stride(), y, *y.stride(), plan.tiles, plan.offsets, plan.weights, plan.first_weight,
            ignore_index, rows, plan.num_logits, plan.num_tiles, block_rows, labels,
            upstream, upstream.stride(0) if upstream.dim() else 0, task_weights, out,
            SHAPES=plan.shapes, MAX_ROWS=block_rows, MIXED=plan.mixed, WEIGHTED=plan.weights is not None,
            SCALED=task_weights is not None, ACC=_ACCUMULATORS[labels.dtype], num_warps=4,
        )  # fmt: skip
    return out


def record(signed: Tensor, refused: Tensor, recording: Recording) -> None:
    """Update the map with probabilities float32 ``[B, T]``: NaN for a missing label, negative where right.

    `refused` uint8 ``[B]`` is 1 for rows to leave out and count.
    """
    rows = signed.shape[0]
    if rows == 0:
        return
    links, programs = _links(recording.ids)
    with _on(signed.device):
        if programs:
            link_kernel[(programs,)](recording.ids, rows, links, num_warps=4)
        _finish(None, (signed, refused[:, None], links), recording)


def _finish(
    partial: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    rows: tuple[Tensor, Tensor, Tensor],
    recording: Recording | None,
) -> None:
    """Launch what comes last: losses from their partial sums (if there are any) and the map's update (if any)."""
    gold, flags, links = rows
    programs = blocks = finish_tasks = finish_blocks = 1
    if partial is None:
        programs, partial = 0, (gold, flags, gold, gold)
    else:
        blocks, tasks = partial[0].shape
        finish_tasks = min(triton.next_power_of_2(tasks), 128)
        finish_blocks = min(triton.next_power_of_2(blocks), 1024 // finish_tasks)
        programs = triton.cdiv(tasks, finish_tasks)
    record_programs, batch, record_tasks, record_rows = 0, 0, 1, 1
    words = counts = rejected = gold
    tasks = partial[2].shape[-1]
    if recording is not None:
        words, counts, rejected, _ = recording
        batch, tasks = gold.shape
        record_tasks = min(triton.next_power_of_2(tasks), 512)
        record_rows = max(1, 512 // record_tasks)
        record_programs = triton.cdiv(batch, record_rows)
    finish_kernel[(programs + record_programs,)](
        partial[0], partial[1], blocks, tasks, partial[2], partial[3], programs,
        gold, flags, gold if recording is None else recording.ids, links, batch,
        1 if recording is None else flags.shape[1], words, counts, rejected, words.shape[0],
        FINISH_TASKS=finish_tasks, FINISH_BLOCKS=finish_blocks, ROWS=record_rows, TASKS=record_tasks,
        FLAGS=1 if recording is None else min(triton.next_power_of_2(flags.shape[1]), 32),
        RECORD=recording is not None, COMPLETE=recording is not None and counts.dim() == 1, num_warps=4,
    )  # fmt: skip


def _links(ids: Tensor) -> tuple[Tensor, int]:
    """Return int32 ``[2, B]``: for every row the last before and the first after with its id; -1 and B if none.

    Filled already, or by so many programs of the next launch.
    """
    rows = ids.shape[0]
    links = torch.empty((2, rows), dtype=torch.int32, device=ids.device)
    if rows <= MOST_LINKED:
        return links, triton.cdiv(rows, _LINK_ROWS)
    ordered, order = torch.sort(ids, stable=True)
    order = order.int()
    same = ordered[1:] == ordered[:-1]
    before, after = torch.full_like(order, -1), torch.full_like(order, rows)
    before[1:] = torch.where(same, order[:-1], -1)
    after[:-1] = torch.where(same, order[1:], rows)
    at = order.long()
    links[0].scatter_(0, at, before)
    links[1].scatter_(0, at, after)
    return links, 0


def _blocks(plan: Plan, rows: int) -> tuple[int, int]:
    """Return the rows of a block, a power of two, and the number of blocks; the device has no say, so sums have none.

    Small batches make many small blocks, so that all of the device has work; large ones few, whose sums are few.
    """
    least = min(max(1, _LANES // plan.most_lanes), triton.next_power_of_2(rows))
    spread = min(triton.next_power_of_2(triton.cdiv(rows * plan.num_tiles, 8192)), 64)
    block_rows = max(least, spread, triton.next_power_of_2(triton.cdiv(rows, _MOST_BLOCKS)))
    return block_rows, triton.cdiv(rows, block_rows)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
