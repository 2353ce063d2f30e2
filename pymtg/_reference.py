"""Every operator in plain torch: the oracle that each backend is held to, and the fallback on any device.

Arithmetic is float32 for half-precision and float32 logits, float64 for float64 ones. Nothing here is tuned: a handful
of vectorised torch calls over all tasks at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pymtg import _words
from pymtg.errors import InvalidArgumentError, MissingLabelError, SampleIdError
from pymtg.tasks import TaskLayout

SOFT_LABEL = 1 - 2**63
"""What stands for a label between class numbers where no host reads it: a label that no task has."""


class MapState(NamedTuple):
    """The tensors of a data map, updated in place."""

    words: Tensor
    """Packed mean, standard deviation and correctness, int32 ``[M, 2, T]``; see :mod:`pymtg._words`."""
    counts: Tensor
    """Observations: int32 ``[M]`` for complete labels, int16 ``[M, T]`` where labels may be missing."""
    rejected: Tensor
    """Rows refused because a loss was not finite, int64 ``[1]``."""

    @property
    def missing(self) -> bool:
        """Whether labels may be missing."""
        return self.counts.dim() == 2


class Columns(NamedTuple):
    """What each column of the logits belongs to."""

    task: Tensor
    """Task of each column, int64 ``[num_logits]``."""
    first: Tensor
    """First column of each task, int64 ``[T]``."""
    single: Tensor
    """Tasks of one logit, bool ``[T]``."""
    labels: Tensor
    """Number of valid labels of each task, int64 ``[T]``."""


def columns_of(layout: TaskLayout, device: torch.device) -> Columns:
    """Return the column description of a layout on a device."""
    classes = torch.tensor(layout.num_classes, device=device)
    return Columns(
        task=torch.repeat_interleave(torch.arange(layout.num_tasks, device=device), classes),
        first=torch.tensor(layout.offsets[:-1], device=device),
        single=classes == 1,
        labels=classes.clamp(min=2),
    )


def cross_entropy(
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
    """Return the per-task losses ``[T]`` and the gradient ``[B, num_logits]`` of their (weighted) sum; update the map.

    The gradient is in the arithmetic's dtype and empty unless asked for. Raises, before anything is written, for
    targets or ids out of range and for a missing label met by a map of complete ones.
    """
    columns = columns_of(layout, logits.device)
    x = logits if logits.dtype == torch.float64 else logits.float()
    y = targets.long()
    valid = y != ignore_index
    _check_targets(y, valid, columns, layout)
    if state is not None:
        assert sample_ids is not None
        check_ids(sample_ids, state.words.shape[0])
        if not state.missing:
            check_complete(valid, layout)

    per_row, slope, label_weight, gold, right = _row_losses(x, y, valid, columns, layout)
    count = _label_counts(valid, x.dtype)
    losses = per_row.sum(0) / count
    gradient = x.new_empty(0)
    if need_gradient:
        scale = label_weight / count
        gradient = _scaled(slope, scale if weights is None else scale * weights, valid, columns)
    if state is not None and sample_ids is not None:
        record(state, gold.float(), right, valid, sample_ids, ~torch.isfinite(per_row).all(1))
    return losses, gradient


def assigned_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    assignment: Tensor,
    layout: TaskLayout,
    *,
    ignore_index: int = -100,
    need_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``sum_tk Z_tk loss_tk`` of logits ``[K, B, num_logits]``, and what its gradients are made of.

    That is: the total, a scalar; the losses ``[T, K]``; the gradient ``[K, B, num_logits]`` of the total, empty unless
    asked for; and for an assignment per row, ``[B, T, K]`` instead of ``[T, K]``, the total's gradient with respect to
    it, ``l_btk / n_t`` with 0 for missing labels, else empty. All in the arithmetic's dtype. Raises, before anything
    is written, for targets out of range.
    """
    columns = columns_of(layout, logits.device)
    x = logits if logits.dtype == torch.float64 else logits.float()
    shares = assignment.to(x.dtype)
    y = targets.long()
    valid = y != ignore_index
    _check_targets(y, valid, columns, layout)
    count = _label_counts(valid, x.dtype)
    gradient = x.new_empty(x.shape if need_gradient else 0)
    by_row = []
    for k in range(x.shape[0]):
        per_row, slope, label_weight, _, _ = _row_losses(x[k], y, valid, columns, layout)
        by_row.append(per_row / count)
        if need_gradient:
            gradient[k] = _scaled(slope, label_weight / count * shares[..., k], valid, columns)
    row_losses = torch.stack(by_row, 2)
    losses = row_losses.sum(0)
    if shares.dim() == 2:
        return (shares * losses).sum(), losses, gradient, x.new_empty(0)
    return torch.where(valid[:, :, None], shares * row_losses, 0.0).sum(), losses, gradient, row_losses


def _row_losses(
    x: Tensor, y: Tensor, valid: Tensor, columns: Columns, layout: TaskLayout
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted losses [B, T], 0 for missing labels; the unweighted ones' slopes [B, C]; label weights; gold; right."""
    y = torch.where(valid, y, 0)
    gold, log_gold, slope, right = _gold(x, y, columns)
    label_weight = _label_weights(y, columns, layout, x.dtype)
    return torch.where(valid, -log_gold * label_weight, 0.0), slope, label_weight, gold, right


def _label_counts(valid: Tensor, dtype: torch.dtype) -> Tensor:
    return valid.sum(0).clamp(min=1).to(dtype)


def _scaled(slope: Tensor, scale: Tensor, valid: Tensor, columns: Columns) -> Tensor:
    """Return the slopes [B, C] times their tasks' scale [B, T], 0 for missing labels."""
    return torch.where(valid[:, columns.task], slope * scale[:, columns.task], 0.0).contiguous()


def scale_gradient(gradient: Tensor, upstream: Tensor, layout: TaskLayout) -> Tensor:
    """Return the gradient ``[B, num_logits]`` with each task's columns times its entry of `upstream` ``[T]``."""
    return gradient * upstream[columns_of(layout, gradient.device).task]


def _gold(x: Tensor, y: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gold probability and its logarithm [B, T], d(-log gold)/d logits [B, C], whether the argmax is the gold class.

    A softmax over every task's columns, then what a one-logit task has in its place: the logistic loss as torch
    writes it, so that infinite logits give the same there and here.
    """
    rows, tasks = y.shape
    single, task_of = columns.single, columns.task.expand(rows, -1)
    at = columns.first + torch.where(single, 0, y)
    top = x.new_full((rows, tasks), -torch.inf).scatter_reduce(1, task_of, x, "amax")
    shifted = x - top.gather(1, task_of)
    e = shifted.exp()
    # In float64: one running sum over thousands of classes would lose the small ones among them.
    total = e.new_zeros((rows, tasks), dtype=torch.float64).scatter_add(1, task_of, e.double()).to(x.dtype)
    chosen = shifted.gather(1, at)
    logit, label = x.gather(1, columns.first.expand(rows, -1)), y.to(x.dtype)
    logistic = F.logsigmoid(logit) - (1 - label) * logit
    log_gold = torch.where(single, logistic, chosen - total.log())
    gold = torch.where(single, torch.sigmoid(torch.where(y == 1, logit, -logit)), chosen.exp() / total)
    # The first of equal maxima is the prediction; a one-logit task predicts 1 for a positive logit only.
    position = torch.arange(x.shape[1], device=x.device).expand(rows, -1)
    at_top = torch.where(shifted == 0, position, x.shape[1])
    first_top = torch.full_like(y, x.shape[1]).scatter_reduce(1, task_of, at_top, "amin")
    right = torch.where(single, (logit > 0) == (y == 1), first_top == at)
    probabilities = torch.where(single[columns.task], torch.sigmoid(x), e / total.gather(1, task_of))
    is_gold = torch.zeros_like(x).scatter_(1, at, torch.where(single, label, 1.0))
    return gold, log_gold, probabilities - is_gold, right


def _label_weights(y: Tensor, columns: Columns, layout: TaskLayout, dtype: torch.dtype) -> Tensor:
    weight = torch.ones(y.shape, dtype=dtype, device=y.device)
    if layout.pos_weight is not None:
        positive = torch.tensor([1.0 if w is None else w for w in layout.pos_weight], dtype=dtype, device=y.device)
        weight = torch.where(columns.single & (y == 1), positive, weight)
    if layout.class_weights is not None:
        flat = [
            weight
            for classes, weights in zip(layout.num_classes, layout.class_weights, strict=True)
            for weight in (weights if weights is not None else (1.0,) * classes)
        ]
        table = torch.tensor(flat, dtype=dtype, device=y.device)
        weight = torch.where(columns.single, weight, table[columns.first + torch.where(columns.single, 0, y)])
    return weight


def record(
    state: MapState, gold: Tensor, right: Tensor, valid: Tensor, sample_ids: Tensor, refused: Tensor | None = None
) -> None:
    """Welford's update (Welford 1962) of the map with gold probabilities ``[B, T]``.

    Rows of the same id count one after the other. `refused` ``[B]`` marks rows to leave out and count.
    """
    if refused is not None:
        state.rejected.add_(refused.sum())
        keep = ~refused
        gold, right, valid, sample_ids = gold[keep], right[keep], valid[keep], sample_ids[keep]
    sample_ids = sample_ids.long()
    occurrence = _occurrences(sample_ids)
    for k in range(int(occurrence.max()) + 1 if occurrence.numel() else 0):
        rows = occurrence == k
        _record_distinct(state, gold[rows], right[rows], valid[rows], sample_ids[rows])


def _occurrences(ids: Tensor) -> Tensor:
    """How often each id has stood before in the batch."""
    order = torch.argsort(ids, stable=True)
    ordered = ids[order]
    position = torch.arange(ids.numel(), device=ids.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, position, 0).cummax(0).values if ids.numel() else position
    result = torch.empty_like(position)
    result[order] = position - first
    return result


def _record_distinct(state: MapState, p: Tensor, right: Tensor, valid: Tensor, ids: Tensor) -> None:
    words = state.words[ids]
    mean, std = _words.unpack_values(words)
    hits = _words.unpack_right(words)
    if state.missing:
        n = (state.counts[ids].int() + valid).clamp(max=_words.MOST_MISSING_COUNTED)
        state.counts[ids] = n.to(state.counts.dtype)
    else:
        new_counts = (state.counts[ids].long() + 1).clamp(max=_words.MOST_COMPLETE_COUNTED)
        state.counts[ids] = new_counts.to(state.counts.dtype)
        n = new_counts[:, None]
    inverse = 1.0 / n.clamp(min=1).float()
    delta = p - mean
    new_mean = mean + delta * inverse
    variance = std * std * (1 - inverse) + (delta * inverse) * (p - new_mean)
    hits = hits + (right & (n <= _words.MOST_COUNTED))
    updated = _words.pack(new_mean, variance.sqrt(), hits)
    state.words[ids] = torch.where(valid[:, None, :], updated, words)


def _check_targets(y: Tensor, valid: Tensor, columns: Columns, layout: TaskLayout) -> None:
    bad = valid & ((y < 0) | (y >= columns.labels))
    if bad.any():
        row, task = bad.nonzero()[0].tolist()
        raise target_out_of_range(layout, row, task, int(y[row, task]))


def check_ids(ids: Tensor, num_samples: int) -> None:
    """Raise SampleIdError for the first id outside 0..num_samples - 1."""
    bad = (ids < 0) | (ids >= num_samples)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise id_out_of_range(row, int(ids[row]), num_samples)


def check_complete(valid: Tensor, layout: TaskLayout) -> None:
    """Raise MissingLabelError for the first label that is not there."""
    if not valid.all():
        row, task = (~valid).nonzero()[0].tolist()
        raise missing_label(layout, row, task)


def target_out_of_range(layout: TaskLayout, row: int, task: int, value: int) -> InvalidArgumentError:
    """Error for a label that the task does not have."""
    highest = max(layout.num_classes[task], 2) - 1
    return InvalidArgumentError(
        f"targets must be 0..{highest} or ignore_index for task {layout.names[task]!r}; "
        f"row {row}, column {layout.first_column + task} holds {value}"
    )


def soft_label(whose: str, found: str) -> InvalidArgumentError:
    """Error for a label that is no whole number."""
    return InvalidArgumentError(
        f"targets {whose} must be 0 or 1 (whole class numbers): a soft label has no gold probability; {found}"
    )


def id_out_of_range(row: int, value: int, num_samples: int) -> SampleIdError:
    """Error for an id that the map does not have."""
    return SampleIdError(f"sample_ids must be 0..{num_samples - 1} for this data map; row {row} holds {value}")


def missing_label(layout: TaskLayout, row: int, task: int) -> MissingLabelError:
    """Error for a missing label met by a map of complete ones."""
    return MissingLabelError(
        f"targets miss the label of task {layout.names[task]!r} in row {row}, and the data map was built for complete "
        "labels; build it with DataMap(..., missing=True)"
    )
