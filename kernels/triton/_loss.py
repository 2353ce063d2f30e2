"""On the device: one pass over the logits for losses, label counts and gold probabilities."""

from __future__ import annotations

import triton
import triton.language as tl

from . import _record
from ._faults import note

CHUNK: tl.constexpr = tl.constexpr(512)
"""Classes of a wide task that are read at once."""
WIDE: tl.constexpr = tl.constexpr(1 << 15)
"""In the place of the padded classes: a task that is read in chunks."""
NOTE_TASKS: tl.constexpr = tl.constexpr(32)
NOTE_ROWS: tl.constexpr = tl.constexpr(32)
FAULT_TARGET: tl.constexpr = tl.constexpr(1)
FAULT_MISSING: tl.constexpr = tl.constexpr(2)
FAULT_SAMPLE_ID: tl.constexpr = tl.constexpr(3)


@triton.jit
def logistic(x, y):
    """Loss of one-logit tasks as torch writes it, so that infinite logits give the same; gold probability; right."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log1p = tl.log(u) + (e - (u - 1.0)) / u  # the second term is what rounding took off u
    loss = (1 - y).to(x.dtype) * x - (tl.minimum(x, 0.0) - log1p)
    agrees = tl.where(y == 1, x, -x) >= 0
    gold = tl.where(agrees, 1.0, e) / u
    return tl.where(x == x, loss, x), tl.where(x == x, gold, x), (x > 0) == (y == 1)


@triton.jit
def softmax_gold(x, y, classes, PAD: tl.constexpr, MIXED: tl.constexpr):
    """Loss, gold probability and right of logits [R, T, PAD]; masked ones are -inf."""
    c = tl.arange(0, PAD)[None, None, :]
    top = tl.max(x, 2)
    shifted = x - top[:, :, None]
    total = tl.sum(tl.exp(shifted), 2)
    chosen = tl.sum(tl.where(c == y[:, :, None], shifted, 0.0), 2)
    loss = tl.log(total) - chosen
    gold = tl.exp(chosen) / total
    right = tl.min(tl.where(x == top[:, :, None], c, PAD), 2) == y  # the first of equal maxima
    if MIXED:
        single = classes[None, :] == 1
        one_loss, one_gold, one_right = logistic(tl.sum(tl.where(c == 0, x, 0.0), 2), y)
        loss = tl.where(single, one_loss, loss)
        gold = tl.where(single, one_gold, gold)
        right = tl.where(single, one_right, right)
    return loss, gold, right


@triton.jit
def wide_sums(row, in_row, first, classes, logits, row_stride, column_stride, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Largest logit [R] of a wide task, where it first stands, and the sum of the exponentials below it."""
    top = tl.full((ROWS,), float("-inf"), ACC)
    place = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS,), ACC)
    for start in range(0, classes, CHUNK):
        c = start + tl.arange(0, CHUNK)
        at = logits + row[:, None] * row_stride + (first + c)[None, :] * column_stride
        x = tl.load(at, in_row[:, None] & (c < classes)[None, :], other=float("-inf")).to(ACC)
        here = tl.max(x, 1)
        where = tl.min(tl.where(x == here[:, None], c[None, :], classes), 1)
        place = tl.where(here > top, where, place).to(tl.int32)
        now = tl.maximum(top, here)
        base = tl.where(now == float("-inf"), 0.0, now)  # nothing but minus infinity so far: sums stay 0
        total = total * tl.exp(top - base) + tl.sum(tl.exp(x - base[:, None]), 1)
        top = now
    return top, place, total


@triton.jit
def read_targets(
    row, task, inside, targets, target_row_stride, target_column_stride, labels, ignore_index, COMPLETE: tl.constexpr
):
    """Labels, whether they are there, and whether they are faulty, [R, T]; 0 for labels that cannot be used."""
    at = targets + row[:, None] * target_row_stride + task.to(tl.int64)[None, :] * target_column_stride
    y = tl.load(at, inside, other=0).to(tl.int64)
    valid = inside & (y != ignore_index)
    bad = valid & ((y < 0) | (y >= labels[None, :]))
    if COMPLETE:
        bad = bad | (inside & (y == ignore_index))
    valid = valid & (bad == 0)
    return tl.where(valid, y, 0).to(tl.int32), valid, bad


@triton.jit
def label_weight(y, task, inside, weights, first_weight, ACC: tl.constexpr):
    """Weights of labels [R, T]."""
    first = tl.load(first_weight + task, inside, other=0)
    place = first[None, :] + y  # one offset: Triton 3.6 fails on a pointer that is moved twice here
    return tl.load(weights + place, inside[None, :], other=0.0).to(ACC)


@triton.jit
def _task_rows(
    row, in_row, task, in_tile, first, classes, y, logits, row_stride, column_stride,
    PAD: tl.constexpr, ROWS: tl.constexpr, MIXED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Unweighted loss, gold probability and right, [R, T], of one tile's rows."""
    if PAD == 1:
        at = logits + row[:, None] * row_stride + first[None, :] * column_stride
        x = tl.load(at, in_row[:, None] & in_tile[None, :], other=0.0).to(ACC)
        return logistic(x, y)
    elif PAD == WIDE:
        the_first, the_classes = tl.sum(first, 0), tl.sum(classes, 0).to(tl.int32)  # of the one task
        top, place, total = wide_sums(row, in_row, the_first, the_classes, logits, row_stride, column_stride, ROWS, ACC)
        at = logits + row[:, None] * row_stride + (first[None, :] + y) * column_stride
        chosen = tl.load(at, in_row[:, None] & in_tile[None, :], other=0.0).to(ACC) - top[:, None]
        right = place[:, None] == y
        return tl.log(total)[:, None] - chosen, tl.exp(chosen) / total[:, None], right
    else:
        c = tl.arange(0, PAD)
        at = (
            logits
            + (row[:, None] * row_stride)[:, :, None]
            + ((first[:, None] + c[None, :]) * column_stride)[None, :, :]
        )
        mask = (in_tile[:, None] & (c[None, :] < classes[:, None]))[None, :, :] & in_row[:, None, None]
        x = tl.load(at, mask, other=float("-inf")).to(ACC)
        return softmax_gold(x, y, classes, PAD, MIXED)


@triton.jit
def _tile(
    block, tile, first_task, tasks, logits, row_stride, column_stride, targets, target_row_stride,
    target_column_stride, offsets, weights, first_weight, ignore_index, num_rows, num_tasks, num_tiles,
    block_rows, sums, counts, gold_out, flags, ids, num_samples,
    PAD: tl.constexpr, TASKS: tl.constexpr, ROWS: tl.constexpr, MIXED: tl.constexpr, WEIGHTED: tl.constexpr,
    RECORD: tl.constexpr, COMPLETE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tile's tasks over one block of rows: partial sums and counts; per row gold probabilities and flags."""
    t = tl.arange(0, TASKS)
    in_tile = t < tasks
    task = first_task + t
    first = tl.load(offsets + task, in_tile, other=0)
    classes = tl.load(offsets + task + 1, in_tile, other=0) - first
    labels = tl.maximum(classes, 2)
    sum_ = tl.zeros((TASKS,), ACC)
    count = tl.zeros((TASKS,), tl.int32)
    faulty = tl.zeros((ROWS, TASKS), tl.int32)
    lost = tl.zeros((ROWS,), tl.int32)
    start = block.to(tl.int64) * block_rows
    for step in range(0, block_rows, ROWS):
        row = start + step + tl.arange(0, ROWS)
        in_row = row < num_rows
        inside = in_row[:, None] & in_tile[None, :]
        y, valid, bad = read_targets(
            row, task, inside, targets, target_row_stride, target_column_stride, labels, ignore_index, COMPLETE
        )
        loss, gold, right = _task_rows(
            row, in_row, task, in_tile, first, classes, y, logits, row_stride, column_stride, PAD, ROWS, MIXED, ACC
        )
        if WEIGHTED:
            loss = loss * label_weight(y, task, in_tile, weights, first_weight, ACC)
        loss = tl.where(valid, loss, 0.0)
        spoiled = bad
        if RECORD:
            sample = tl.load(ids + row, in_row, other=0).to(tl.int64)
            stray = in_row & ((sample < 0) | (sample >= num_samples))
            lost = lost | stray.to(tl.int32)
            spoiled = spoiled | stray[:, None]
            signed = tl.where(right, -gold, gold).to(tl.float32)
            out = row[:, None] * num_tasks + task[None, :]
            tl.store(gold_out + out, tl.where(valid, signed, float("nan")), inside)
            infinite = valid & ((tl.abs(loss) < float("inf")) == 0)
            flag = tl.max(infinite.to(tl.int32), 1) | (tl.max(bad.to(tl.int32), 1) * 2)
            tl.store(flags + row * num_tiles + tile, flag.to(tl.uint8), in_row)
        sum_ += tl.sum(tl.where(spoiled, float("nan"), loss), 0)
        count += tl.sum(valid.to(tl.int32), 0)
        faulty = faulty | bad.to(tl.int32)
    out = block.to(tl.int64) * num_tasks + task
    tl.store(sums + out, sum_, in_tile)
    tl.store(counts + out, count, in_tile)
    return tl.max(tl.max(faulty, 1), 0) | (tl.max(lost, 0) << 1)


@triton.jit
def _note_target(
    start, block_rows, num_rows, first_task, tasks, targets, target_row_stride, target_column_stride, offsets,
    ignore_index, num_tasks, faults, layout, COMPLETE: tl.constexpr,
):  # fmt: skip
    """Look for the first faulty label of a tile once more, and note it: off the path of batches without."""
    best = tl.full((), 2**62, tl.int64)
    for step in range(tl.minimum(block_rows, num_rows - start)):
        row = start + step + tl.arange(0, 1)
        for place in range(0, tasks, NOTE_TASKS):
            task = first_task + place + tl.arange(0, NOTE_TASKS)
            in_tile = task < first_task + tasks
            first = tl.load(offsets + task, in_tile, other=0)
            labels = tl.maximum(tl.load(offsets + task + 1, in_tile, other=0) - first, 2)
            inside = (row < num_rows)[:, None] & in_tile[None, :]
            _, _, bad = read_targets(
                row, task, inside, targets, target_row_stride, target_column_stride, labels, ignore_index, COMPLETE
            )
            found = tl.where(bad, row[:, None] * num_tasks + task[None, :], 2**62)
            best = tl.minimum(best, tl.min(tl.min(found, 1), 0))
    row_found = best // num_tasks
    task_found = best % num_tasks
    value = tl.load(targets + row_found * target_row_stride + task_found * target_column_stride).to(tl.int64)
    code = tl.where(value == ignore_index, FAULT_MISSING, FAULT_TARGET)
    note(faults, code, row_found, task_found, value, layout, 0)


@triton.jit
def _note_sample_id(start, block_rows, num_rows, ids, num_samples, faults, layout):
    best = tl.full((), 2**62, tl.int64)
    for step in range(0, block_rows, NOTE_ROWS):
        row = start + step + tl.arange(0, NOTE_ROWS)
        in_row = row < num_rows
        sample = tl.load(ids + row, in_row, other=0).to(tl.int64)
        stray = in_row & ((sample < 0) | (sample >= num_samples))
        best = tl.minimum(best, tl.min(tl.where(stray, row, 2**62), 0))
    note(faults, FAULT_SAMPLE_ID, best, 0, tl.load(ids + best).to(tl.int64), layout, num_samples)


@triton.jit(do_not_specialize=["ignore_index", "num_samples", "layout", "loss_programs"])
def loss_kernel(
    logits, row_stride, column_stride, targets, target_row_stride, target_column_stride, tiles, offsets, weights,
    first_weight, ignore_index, num_rows, num_tasks, num_tiles, block_rows, sums, counts, gold_out, flags, ids,
    links, num_samples, faults, layout, loss_programs,
    SHAPES: tl.constexpr, MAX_ROWS: tl.constexpr, MIXED: tl.constexpr, WEIGHTED: tl.constexpr,
    RECORD: tl.constexpr, COMPLETE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Programs over (block of rows, tile), tiles fastest; beyond them, where recording, those that link equal ids."""
    program = tl.program_id(0)
    if program < loss_programs:
        tile = program % num_tiles
        block = program // num_tiles
        first_task = tl.load(tiles + tile * 3)
        tasks = tl.load(tiles + tile * 3 + 1)
        pad = tl.load(tiles + tile * 3 + 2)
        faulty = tl.zeros((), tl.int32)
        for b in tl.static_range(16):
            if (SHAPES >> (4 * b)) & 15 > 0:
                if pad == b:
                    faulty = _tile(
                        block, tile, first_task, tasks, logits, row_stride, column_stride, targets,
                        target_row_stride, target_column_stride, offsets, weights, first_weight, ignore_index,
                        num_rows, num_tasks, num_tiles, block_rows, sums, counts, gold_out, flags, ids,
                        num_samples,
                        PAD=1 << b, TASKS=1 << (((SHAPES >> (4 * b)) & 15) - 1),
                        ROWS=rows_at_once(b, ((SHAPES >> (4 * b)) & 15) - 1, MAX_ROWS),
                        MIXED=MIXED, WEIGHTED=WEIGHTED, RECORD=RECORD, COMPLETE=COMPLETE, ACC=ACC,
                    )  # fmt: skip
        start = block.to(tl.int64) * block_rows
        if faulty & 1:
            _note_target(
                start, block_rows, num_rows, first_task, tasks, targets, target_row_stride, target_column_stride,
                offsets, ignore_index, num_tasks, faults, layout, COMPLETE,
            )  # fmt: skip
        if (faulty >> 1) & (tile == 0):
            _note_sample_id(start, block_rows, num_rows, ids, num_samples, faults, layout)
    elif RECORD:
        _record.link_rows(program - loss_programs, ids, num_rows, links)


@triton.constexpr_function
def rows_at_once(pad, tasks, most):
    """Rows that a program reads at once, given log2 of a tile's classes and tasks: 8 a thread, 4 of one-logit tasks."""
    lanes = 512 if pad == 15 else 1 << (max(pad, 1) + tasks)
    return max(1, min(1024 // lanes, most))
