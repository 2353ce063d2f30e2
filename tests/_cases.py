"""Random batches of awkward shapes and strides, and the truth about them: one task at a time, in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pymtg import TaskLayout

_KINDS = {"ones": [1] * 25, "twos": [2] * 26, "mixed": [3, 1, 7, 2, 40]}
CLASSES: dict[str, list[int]] = {
    **{f"ones-{n}": [1] * n for n in (1, 15, 23, 24, 25, 100)},
    **{f"twos-{n}": [2] * n for n in (1, *range(24, 38))},
    "primes": [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37],
    "ragged": [1, 2, 19, 1, 3, 2, 2, 16, 17, 1, 15, 33, 1, 4],
    "wide": [300],
    "widest": [5000],
    "wide-between": [1, 300, 2, 257, 1],
    "ones-among": [3, *[1] * 24, 3, *[1] * 23, 3],
    **{
        "-".join(order): [classes for kind in order for classes in _KINDS[kind]]
        for order in itertools.permutations(_KINDS)
    },
}
ROWS = (0, 1, 5, 16, 17, 33, 252)
STRIDES = ("plain", "columns", "transposed", "one row", "every other")
MISSING = ("none", "some", "task", "all")


def random_layout(classes: list[int], generator: torch.Generator, *, weighted: bool) -> TaskLayout:
    """Return a layout of these class counts, with random weights on some of its tasks."""
    names = [f"task{t}" for t in range(len(classes))]
    if not weighted:
        return TaskLayout(names, classes)
    there = torch.rand(len(classes), generator=generator) < 0.7
    positive = [
        float(torch.rand((), generator=generator) * 3) if c == 1 and w else None
        for c, w in zip(classes, there, strict=True)
    ]
    by_class = [
        (torch.rand(c, generator=generator) * 3).tolist() if c > 1 and w else None
        for c, w in zip(classes, there, strict=True)
    ]
    return TaskLayout(names, classes, positive, by_class)


def strided(values: Tensor, strides: str, poison: float | int) -> Tensor:
    """Return equal values in other strides, in a buffer that holds `poison` around them."""
    rows, columns = values.shape
    if strides == "plain":
        return values.clone()
    if strides == "columns":
        buffer = values.new_full((rows + 2, columns + 7), poison)
        view = buffer[1 : rows + 1, 3 : columns + 3]
    elif strides == "transposed":
        buffer = values.new_full((columns + 2, rows + 1), poison)
        view = buffer[1 : columns + 1, :rows].T
    elif strides == "every other":
        buffer = values.new_full((2 * rows + 1, 2 * columns + 1), poison)
        view = buffer[1::2, 1::2]
    else:
        return values[:1].expand(rows, columns) if rows else values.clone()
    view.copy_(values)
    return view


@dataclass
class Case:
    """A batch: logits that need a gradient, targets, and what goes up the graph."""

    layout: TaskLayout
    logits: Tensor
    targets: Tensor
    upstream: Tensor
    ignore_index: int

    def to(self, device: torch.device | str) -> Case:
        """Return the case on a device, strides kept."""
        if self.logits.device == torch.device(device):
            return self
        logits, targets = (_on(values, device) for values in (self.logits.detach(), self.targets))
        return Case(self.layout, logits.requires_grad_(), targets, self.upstream.to(device), self.ignore_index)

    def __str__(self) -> str:
        return (
            f"{self.logits.dtype} {list(self.logits.shape)} strides {self.logits.stride()}, "
            f"{self.targets.dtype} strides {self.targets.stride()}, ignore_index {self.ignore_index}, "
            f"classes {self.layout.num_classes}"
        )


def _on(values: Tensor, device: torch.device | str) -> Tensor:
    """Return a copy on a device that keeps strides and offset, and with them what lies around the values."""
    storage = torch.empty(0, dtype=values.dtype).set_(values.untyped_storage())
    return storage.to(device).as_strided(values.shape, values.stride(), values.storage_offset())


def random_case(
    layout: TaskLayout,
    rows: int,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    target_dtype: torch.dtype = torch.int64,
    missing: str = "none",
    logit_strides: str = "plain",
    target_strides: str = "plain",
) -> Case:
    """Draw a batch; labels that `target_dtype` cannot hold are not drawn."""
    largest = 1 if target_dtype == torch.bool else min(torch.iinfo(target_dtype).max, 10**6)
    labels = torch.tensor([min(max(c, 2), largest + 1) for c in layout.num_classes])
    targets = (torch.rand(rows, layout.num_tasks, generator=generator) * labels).long()
    ignore_index = -100
    if missing != "none":
        ignore_index = 1 if target_dtype == torch.bool else min(255, largest) if target_dtype != torch.int64 else -100
        absent = torch.rand(targets.shape, generator=generator) < 0.3
        if missing == "task":
            absent |= torch.arange(layout.num_tasks) == int(torch.randint(layout.num_tasks, (), generator=generator))
        targets[absent | torch.tensor(missing == "all")] = ignore_index
    logits = 4 * torch.randn(rows, layout.num_logits, generator=generator, dtype=torch.float64)
    if layout.num_logits > 3:
        logits[::3, 1] *= 8  # some confident ones
    targets = strided(targets.to(target_dtype), target_strides, 113 if target_dtype != torch.bool else 1)
    logits = strided(logits.to(dtype), logit_strides, torch.nan).detach().requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn(layout.num_tasks, generator=generator, dtype=wide)
    return Case(layout, logits, targets, upstream, ignore_index)


@dataclass
class Answer:
    """Losses, gradient, and per (row, task) the gold probability, whether it was right, whether there is a label."""

    losses: Tensor
    gradient: Tensor
    gold: Tensor
    right: Tensor
    valid: Tensor


def task_by_task(case: Case, dtype: torch.dtype = torch.float64) -> Answer:
    """Return the definition, a task at a time with torch's own losses: the truth in float64, plain torch else.

    The mean is over the rows whose label is there, also with class weights.
    """
    layout = case.layout
    logits = case.logits.detach().clone().requires_grad_()
    x_all, y_all = logits.to(dtype), case.targets.long()
    valid = y_all != case.ignore_index
    losses, golds, rights = [], [], []
    for t, name in enumerate(layout.names):
        there = valid[:, t]
        x, y = x_all[there][:, layout.columns(name)], y_all[there, t]
        if x.shape[1] == 1:
            weight = None if layout.pos_weight is None or layout.pos_weight[t] is None else layout.pos_weight[t]
            pos_weight = None if weight is None else torch.tensor(weight, dtype=dtype)
            each = F.binary_cross_entropy_with_logits(x[:, 0], y.to(dtype), pos_weight=pos_weight, reduction="none")
            gold, right = torch.sigmoid(torch.where(y == 1, x[:, 0], -x[:, 0])), (x[:, 0] > 0) == (y == 1)
        else:
            weights = None if layout.class_weights is None else layout.class_weights[t]
            weight = None if weights is None else torch.tensor(weights, dtype=dtype)
            each = F.cross_entropy(x, y, weight, reduction="none")
            gold, right = x.softmax(1).gather(1, y[:, None])[:, 0], x.argmax(1) == y
        losses.append(each.sum() / max(int(there.sum()), 1))
        golds.append(torch.zeros(len(there), dtype=dtype).masked_scatter(there, gold.detach()))
        rights.append(torch.zeros(len(there), dtype=torch.bool).masked_scatter(there, right))
    total = torch.stack(losses)
    (gradient,) = torch.autograd.grad((total * case.upstream.to(dtype)).sum(), x_all)
    gradient = torch.zeros_like(x_all) if gradient is None else gradient
    return Answer(total.detach(), gradient, torch.stack(golds, 1), torch.stack(rights, 1), valid)
