"""On the device: the gradient of the losses, recomputed from the logits."""

from __future__ import annotations

import triton
import triton.language as tl

from ._loss import CHUNK, WIDE, label_weight, read_targets, rows_at_once, wide_sums


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x == x, tl.where(x >= 0, 1.0, e) / (1.0 + e), x)


@triton.jit
def _wide_task(
    row, in_row, first, classes, y, factor, valid, logits, row_stride, column_stride, out, num_logits,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of one wide task: all arguments [R] or scalars."""
    top, _, total = wide_sums(row, in_row, first, classes, logits, row_stride, column_stride, ROWS, ACC)
    for start in range(0, classes, CHUNK):
        c = start + tl.arange(0, CHUNK)
        mask = in_row[:, None] & (c < classes)[None, :]
        at = logits + row[:, None] * row_stride + (first + c)[None, :] * column_stride
        x = tl.load(at, mask, other=0.0).to(ACC)
        slope = tl.exp(x - top[:, None]) / total[:, None] - (c[None, :] == y[:, None]).to(ACC)
        slope = tl.where(valid[:, None], slope * factor[:, None], 0.0)
        tl.store(out + row[:, None] * num_logits + (first + c)[None, :], slope.to(out.dtype.element_ty), mask)


@triton.jit
def _tile(
    block, first_task, tasks, logits, row_stride, column_stride, targets, target_row_stride, target_column_stride,
    offsets, weights, first_weight, ignore_index, num_rows, num_logits, block_rows, labels_found, upstream,
    upstream_stride, task_weights, out,
    PAD: tl.constexpr, TASKS: tl.constexpr, ROWS: tl.constexpr, MIXED: tl.constexpr, WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile's tasks over one block of rows."""
    t = tl.arange(0, TASKS)
    in_tile = t < tasks
    task = first_task + t
    first = tl.load(offsets + task, in_tile, other=0)
    classes = tl.load(offsets + task + 1, in_tile, other=0) - first
    labels = tl.maximum(classes, 2)
    scale = tl.load(upstream + task.to(tl.int64) * upstream_stride, in_tile, other=0.0).to(ACC)
    if SCALED:
        scale = scale * tl.load(task_weights + task, in_tile, other=0.0).to(ACC)
    scale = scale / tl.load(labels_found + task, in_tile, other=1.0).to(ACC)
    start = block.to(tl.int64) * block_rows
    for step in range(0, block_rows, ROWS):
        row = start + step + tl.arange(0, ROWS)
        in_row = row < num_rows
        inside = in_row[:, None] & in_tile[None, :]
        y, valid, _ = read_targets(
            row, task, inside, targets, target_row_stride, target_column_stride, labels, ignore_index, False
        )
        factor = scale[None, :] + tl.zeros((ROWS, TASKS), ACC)
        if WEIGHTED:
            factor = factor * label_weight(y, task, in_tile, weights, first_weight, ACC)
        if PAD == 1:
            at = logits + row[:, None] * row_stride + first[None, :] * column_stride
            slope = _sigmoid(tl.load(at, inside, other=0.0).to(ACC)) - y.to(ACC)
            slope = tl.where(valid, slope * factor, 0.0)
            tl.store(out + row[:, None] * num_logits + first[None, :], slope.to(out.dtype.element_ty), inside)
        elif PAD == WIDE:
            _wide_task(
                row, in_row, tl.sum(first, 0), tl.sum(classes, 0).to(tl.int32), tl.sum(y, 1), tl.sum(factor, 1),
                tl.max(valid.to(tl.int32), 1) > 0, logits, row_stride, column_stride, out, num_logits, ROWS, ACC,
            )  # fmt: skip
        else:
            c = tl.arange(0, PAD)
            column = (first[:, None] + c[None, :])[None, :, :]
            mask = (in_tile[:, None] & (c[None, :] < classes[:, None]))[None, :, :] & in_row[:, None, None]
            at = logits + row[:, None, None] * row_stride + column * column_stride
            x = tl.load(at, mask, other=float("-inf")).to(ACC)
            e = tl.exp(x - tl.max(x, 2)[:, :, None])
            p = e / tl.sum(e, 2)[:, :, None]
            gold = c[None, None, :] == y[:, :, None]
            if MIXED:
                single = (classes == 1)[None, :, None]
                p = tl.where(single, _sigmoid(x), p)
                gold = tl.where(single, (y == 1)[:, :, None], gold)
            slope = tl.where(valid[:, :, None], (p - gold.to(ACC)) * factor[:, :, None], 0.0)
            tl.store(out + row[:, None, None] * num_logits + column, slope.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["ignore_index"])
def gradient_kernel(
    logits, row_stride, column_stride, targets, target_row_stride, target_column_stride, tiles, offsets, weights,
    first_weight, ignore_index, num_rows, num_logits, num_tiles, block_rows, labels_found, upstream, upstream_stride,
    task_weights, out,
    SHAPES: tl.constexpr, MAX_ROWS: tl.constexpr, MIXED: tl.constexpr, WEIGHTED: tl.constexpr, SCALED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Programs over (block of rows, tile), tiles fastest."""
    program = tl.program_id(0)
    tile = program % num_tiles
    block = program // num_tiles
    first_task = tl.load(tiles + tile * 3)
    tasks = tl.load(tiles + tile * 3 + 1)
    pad = tl.load(tiles + tile * 3 + 2)
    for b in tl.static_range(16):
        if (SHAPES >> (4 * b)) & 15 > 0:
            if pad == b:
                _tile(
                    block, first_task, tasks, logits, row_stride, column_stride, targets, target_row_stride,
                    target_column_stride, offsets, weights, first_weight, ignore_index, num_rows, num_logits,
                    block_rows, labels_found, upstream, upstream_stride, task_weights, out,
                    PAD=1 << b, TASKS=1 << (((SHAPES >> (4 * b)) & 15) - 1),
                    ROWS=rows_at_once(b, ((SHAPES >> (4 * b)) & 15) - 1, MAX_ROWS),
                    MIXED=MIXED, WEIGHTED=WEIGHTED, SCALED=SCALED, ACC=ACC,
                )  # fmt: skip
