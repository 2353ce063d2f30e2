"""Losses, loops and data that the tests of recording share."""

from __future__ import annotations

import torch
from torch import nn

from pymtg import DataMap, MultiTaskLoss, TaskLayout

M = 41
ONE = TaskLayout(["species"], [3])
BINARY = TaskLayout.binary(["a", "b", "c", "d"])
MIXED = TaskLayout(["kind", "odd", "size"], [3, 1, 2])


def data(layout, seed=0, rows=M):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    columns = [torch.randint(max(2, c), (rows,), generator=generator) for c in layout.num_classes]
    return inputs, torch.stack(columns, dim=1)


def network(layout):
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, layout.num_logits))


def losses_of(layout):
    return {
        name: nn.BCEWithLogitsLoss() if classes == 1 else nn.CrossEntropyLoss()
        for name, classes in zip(layout.names, layout.num_classes, strict=True)
    }


def fused_map(seen, layout, **options):
    """The map that the library's own loss makes of batches (logits, targets, ids)."""
    ignore_index = options.pop("ignore_index", -100)
    data_map = DataMap(M, layout, **options)
    loss = MultiTaskLoss(layout, data_map, ignore_index=ignore_index)
    for logits, targets, ids in seen:
        loss(logits.clone().requires_grad_(), targets, ids)
    return data_map


def assert_same_map(first, second):
    for name, one, other in zip(first.state._fields, first.state, second.state, strict=True):
        assert torch.equal(one, other), name
    assert int(first.count.sum()) > 0


class Focal(nn.Module):
    """A loss of their own, on all logits at once."""

    def forward(self, predictions, labels):
        p = torch.sigmoid(predictions)
        gold = torch.where(labels == 1, p, 1 - p)
        return -((1 - gold) ** 2 * gold.log()).mean()


def call(losses, names, rows=2):
    for name in names:
        classes = MIXED.num_classes[MIXED.index(name)]
        target = torch.zeros(rows, 1) if classes == 1 else torch.zeros(rows, dtype=torch.long)
        losses[name](torch.zeros(rows, classes), target)


def step(loss, recorder=None, ids=(0, 1)):
    if recorder is not None:
        recorder.ids(ids)
    loss(torch.zeros(len(ids), 3, requires_grad=True), torch.zeros(len(ids), dtype=torch.long)).backward()
