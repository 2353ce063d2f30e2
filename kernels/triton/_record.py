"""On the device: the data map's update, and the sums' last step."""

from __future__ import annotations

import triton
import triton.language as tl

LINK_ROWS: tl.constexpr = tl.constexpr(16)
LINK_COLUMNS: tl.constexpr = tl.constexpr(64)
VALUE_BITS: tl.constexpr = tl.constexpr(26)
VALUE_MASK: tl.constexpr = tl.constexpr((1 << 26) - 1)
SHIFT: tl.constexpr = tl.constexpr(2.0**-7)
SHIFT_BITS: tl.constexpr = tl.constexpr((127 - 7) << 23)
MOST_COUNTED: tl.constexpr = tl.constexpr(4095)
MOST_COMPLETE: tl.constexpr = tl.constexpr(2**31 - 1)
MOST_MISSING: tl.constexpr = tl.constexpr(32767)


@triton.jit
def link_rows(block, ids, num_rows, links):
    """For a block of rows, the last row before and the first row after with the same id: -1 and num_rows if none."""
    row = block * LINK_ROWS + tl.arange(0, LINK_ROWS)
    mine = tl.load(ids + row, row < num_rows, other=0).to(tl.int64)
    before = tl.full((LINK_ROWS,), -1, tl.int32)
    after = tl.zeros((LINK_ROWS,), tl.int32) + num_rows
    for start in range(0, num_rows, LINK_COLUMNS):
        other = start + tl.arange(0, LINK_COLUMNS)
        theirs = tl.load(ids + other, other < num_rows, other=0).to(tl.int64)
        same = (mine[:, None] == theirs[None, :]) & (other < num_rows)[None, :]
        earlier = same & (other[None, :] < row[:, None])
        later = same & (other[None, :] > row[:, None])
        before = tl.maximum(before, tl.max(tl.where(earlier, other[None, :], -1), 1))
        after = tl.minimum(after, tl.min(tl.where(later, other[None, :], num_rows), 1))
    tl.store(links + row, before, row < num_rows)
    tl.store(links + num_rows + row, after, row < num_rows)


@triton.jit
def link_kernel(ids, num_rows, links):
    """Link equal ids, where no loss is computed."""
    link_rows(tl.program_id(0), ids, num_rows, links)


@triton.jit
def _unpack(word):
    return ((word & VALUE_MASK) | SHIFT_BITS).to(tl.float32, bitcast=True) - SHIFT


@triton.jit
def _packed(value, counted):
    return ((value + SHIFT).to(tl.int32, bitcast=True) & VALUE_MASK) | (counted << VALUE_BITS)


@triton.jit
def _observed(word0, word1, gold, n):
    """Both words after one observation (Welford 1962), the n-th; gold is negative where the prediction is right."""
    mean, std = _unpack(word0), _unpack(word1)
    hits = ((word0 >> VALUE_BITS) & 63) | (((word1 >> VALUE_BITS) & 63) << 6)
    right = gold.to(tl.int32, bitcast=True) < 0  # the sign bit, also of a zero
    p = tl.abs(gold)
    inverse = 1.0 / tl.maximum(n, 1).to(tl.float32)
    step = (p - mean) * inverse
    new_mean = mean + step
    variance = std * std * (1.0 - inverse) + step * (p - new_mean)
    hits += (right & (n <= MOST_COUNTED)).to(tl.int32)
    return _packed(new_mean, hits & 63), _packed(tl.sqrt(tl.maximum(variance, 0.0)), hits >> 6)


@triton.jit
def _row_flags(row, inside, flags, num_tiles, FLAGS: tl.constexpr):
    """Whether a loss of a row is not finite (1), whether a value of it is faulty (2)."""
    found = tl.zeros_like(row).to(tl.int32)
    for start in range(0, num_tiles, FLAGS):
        column = start + tl.arange(0, FLAGS)
        at = flags + row.to(tl.int64)[:, None] * num_tiles + column[None, :]
        flag = tl.load(at, inside[:, None] & (column < num_tiles)[None, :], other=0).to(tl.int32)
        found = found | tl.max(flag & 1, 1) | tl.max(flag & 2, 1)
    return found


@triton.jit
def _record_rows(
    block, gold, flags, ids, links, num_rows, num_tasks, num_tiles, words, counts, rejected, num_samples,
    ROWS: tl.constexpr, TASKS: tl.constexpr, FLAGS: tl.constexpr, COMPLETE: tl.constexpr,
):  # fmt: skip
    """Record the rows of a block that are the first of their sample, each followed by the later ones of its sample."""
    row = block * ROWS + tl.arange(0, ROWS)
    in_batch = row < num_rows
    sample = tl.load(ids + row, in_batch, other=-1).to(tl.int64)
    in_map = (sample >= 0) & (sample < num_samples)
    refused = (_row_flags(row, in_map, flags, num_tiles, FLAGS) == 1).to(tl.int64)
    num_refused = tl.sum(refused, 0)
    if num_refused > 0:
        tl.atomic_add(rejected, num_refused)
    head = in_map & (tl.load(links + row, in_batch, other=0) < 0)
    sample = tl.where(head, sample, 0)
    n_before = tl.zeros((ROWS,), tl.int32)
    if COMPLETE:
        n_before = tl.load(counts + sample, head, other=0)
    n_after = n_before
    for start in range(0, num_tasks, TASKS):
        task = start + tl.arange(0, TASKS)
        mask = head[:, None] & (task < num_tasks)[None, :]
        at = words + (sample * 2)[:, None] * num_tasks + task[None, :]
        word0 = tl.load(at, mask, other=0)
        word1 = tl.load(at + num_tasks, mask, other=0)
        at_count = counts + sample[:, None] * num_tasks + task[None, :]
        n_row = n_before
        n = tl.zeros((ROWS, TASKS), tl.int32)
        if not COMPLETE:
            n = tl.load(at_count, mask, other=0).to(tl.int32)
        now = row
        alive = head
        while tl.max(alive.to(tl.int32), 0) > 0:
            keep = alive & (_row_flags(now, alive, flags, num_tiles, FLAGS) == 0)
            at_gold = gold + now.to(tl.int64)[:, None] * num_tasks + task[None, :]
            p = tl.load(at_gold, mask & keep[:, None], other=float("nan"))
            there = p == p
            if COMPLETE:
                n_row = tl.where(keep & (n_row < MOST_COMPLETE), n_row + 1, n_row)
                n = n_row[:, None] + tl.zeros((ROWS, TASKS), tl.int32)
            else:
                n = tl.minimum(n + there.to(tl.int32), MOST_MISSING)
            next0, next1 = _observed(word0, word1, tl.where(there, p, 0.0), n)
            word0 = tl.where(there, next0, word0)
            word1 = tl.where(there, next1, word1)
            now = tl.load(links + num_rows + now, alive, other=num_rows)
            alive = alive & (now < num_rows)
        tl.store(at, word0, mask)
        tl.store(at + num_tasks, word1, mask)
        if COMPLETE:
            n_after = n_row
        else:
            tl.store(at_count, n.to(tl.int16), mask)
    if COMPLETE:
        tl.store(counts + sample, n_after, head)


@triton.jit
def _finish(
    block, sums, counts, num_blocks, num_tasks, losses, labels, TASKS: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Losses of some tasks: the blocks' sums, added in a fixed order in float64, over the number of labels."""
    task = block * TASKS + tl.arange(0, TASKS)
    in_range = task < num_tasks
    total = tl.zeros((TASKS,), tl.float64)
    count = tl.zeros((TASKS,), tl.int64)
    for start in range(0, num_blocks, BLOCKS):
        one = start + tl.arange(0, BLOCKS)
        at = one.to(tl.int64)[:, None] * num_tasks + task[None, :]
        mask = (one < num_blocks)[:, None] & in_range[None, :]
        total += tl.sum(tl.load(sums + at, mask, other=0.0).to(tl.float64), 0)
        count += tl.sum(tl.load(counts + at, mask, other=0).to(tl.int64), 0)
    found = tl.maximum(count, 1).to(labels.dtype.element_ty)
    tl.store(losses + task, total.to(losses.dtype.element_ty) / found, in_range)
    tl.store(labels + task, found, in_range)


@triton.jit(do_not_specialize=["num_samples", "finish_programs"])
def finish_kernel(
    sums, sum_counts, num_blocks, num_tasks, losses, labels, finish_programs,
    gold, flags, ids, links, num_rows, num_tiles, words, counts, rejected, num_samples,
    FINISH_TASKS: tl.constexpr, FINISH_BLOCKS: tl.constexpr, ROWS: tl.constexpr, TASKS: tl.constexpr,
    FLAGS: tl.constexpr, RECORD: tl.constexpr, COMPLETE: tl.constexpr,
):  # fmt: skip
    """Programs that finish the losses, and beyond them programs that record rows."""
    program = tl.program_id(0)
    if program < finish_programs:
        _finish(program, sums, sum_counts, num_blocks, num_tasks, losses, labels, FINISH_TASKS, FINISH_BLOCKS)
    elif RECORD:
        _record_rows(
            program - finish_programs, gold, flags, ids, links, num_rows, num_tasks, num_tiles, words, counts,
            rejected, num_samples, ROWS, TASKS, FLAGS, COMPLETE,
        )  # fmt: skip
