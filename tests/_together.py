"""What the tests of networks trained together share: data in float64, both ways of training, their comparison."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from pymtg import TaskLayout
from pymtg.data import ArrayTasks
from pymtg.nets import convnet, mlp
from pymtg.trainers import TrainConfig
from pymtg.trainers._progress import Reporter
from pymtg.trainers._stages import Setting
from pymtg.trainers._together import train_together

LAYOUTS = {
    "one logit": TaskLayout.binary(["a", "b", "c"], pos_weight=[None, 3.0, 0.5]),
    "two logits": TaskLayout(["a", "b", "c"], [2, 2, 2], class_weights=[None, [1.0, 2.0], None]),
    "ragged": TaskLayout(["a", "b", "c", "d"], [1, 5, 2, 3]),
    "regression": TaskLayout.regression(["x", "y"]),
    "mixed": TaskLayout(["a", "x", "b", "y"], [3, 1, 1, 1], kinds=["classification", "regression"] * 2),
}


def make(layout, seed, rows=61, missing=0.2, shape=(5,)):
    """Return inputs in float64 and targets that follow from them, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    values = inputs.flatten(1) @ torch.randn(math.prod(shape), layout.num_tasks, generator=generator).double()
    targets = torch.stack(
        [
            v if kind == "regression" else (torch.sigmoid(v) * max(2, count)).floor().clamp(max=max(2, count) - 1)
            for v, kind, count in zip(values.T, layout.kinds, layout.num_classes, strict=True)
        ],
        dim=1,
    )
    gone = torch.rand(targets.shape, generator=generator) < missing
    if layout.has_regression:
        return ArrayTasks(inputs, targets.masked_fill(gone, math.nan), layout)
    return ArrayTasks(inputs, targets.long().masked_fill(gone, -100), layout)


def weights_of(layout, networks, seed):
    """Return task weights [T, K] with rows that sum to one, some of them near 0."""
    return np.random.default_rng(seed).dirichlet(np.full(networks, 0.5), layout.num_tasks)


def small(layout):
    return mlp(5, (8, 7))(layout).double()


def images(layout):
    return convnet(2, (4, 3))(layout).double()


def normed(layout):
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, layout.num_logits)).double()


def setting_of(model, train, val=None, seed=0, layout=None, **options):
    config = TrainConfig(**{"epochs": 3, "batch_size": 16, "lr": 1e-2, "device": "cpu", **options})
    return Setting.of(model, train.layout if layout is None else layout, config, seed, train, val, Reporter())


def one_by_one(setting, weights, epochs=3, start=None):
    return [setting.specialised(k, u, epochs=epochs, start=start) for k, u in enumerate(weights.T)]


def assert_same(setting, weights, epochs=3, start=None, alone=None):
    """Train in both ways; compare weights, buffers, histories and best epochs. Return what trained together."""
    alone = one_by_one(setting, weights, epochs, start) if alone is None else alone
    together = train_together(setting, weights, epochs=epochs, start=start)
    assert len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        assert repr(one.network) == repr(other.network)
        assert list(one.network.state_dict()) == list(other.network.state_dict())
        torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=1e-7, atol=1e-9)
        mine, theirs = one.stage, other.stage
        assert (mine.name, mine.epochs, mine.parameters) == (theirs.name, theirs.epochs, theirs.parameters)
        assert mine.best_epoch == theirs.best_epoch
        for record, expected in zip(mine.history, theirs.history, strict=True):
            assert_record(record, expected)
    return together


def assert_record(record, expected):
    assert record.epoch == expected.epoch
    figures = [(record.loss, *record.task_losses), (expected.loss, *expected.task_losses)]
    if expected.val_score is None:
        assert record.val_score is record.val_task_scores is None
    else:
        figures[0] += (record.val_score, *record.val_task_scores)
        figures[1] += (expected.val_score, *expected.val_task_scores)
    np.testing.assert_allclose(*figures, rtol=2e-5, atol=1e-6)  # losses are summed in float32
