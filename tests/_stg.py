"""Data, networks and trainings that the tests of STGTrainer share."""

from __future__ import annotations

import numpy as np
import torch
from _drawn import drawn
from torch import nn

from pymtg import STGTrainer, TaskLayout
from pymtg.nets import mlp

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
FAST = {"epochs": 4, "batch_size": 16, "device": "cpu", "num_threads": 1, "progress": False}


def make(layout=LAYOUT, **options):
    return drawn(layout, **options)


def fit(layout=LAYOUT, data=None, **options):
    data = make(layout) if data is None else data
    return STGTrainer(mlp(5, (8,)), layout, **{**FAST, "num_groups": 2, **options}).fit(data)


def states(trainer):
    return [network.state_dict() for network in (trainer.joint_model_, *trainer.models_)]


def assert_same(first, second):
    for one, other in zip(states(first), states(second), strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert np.array_equal(first.groups_.memberships, second.groups_.memberships)
    assert torch.equal(first.data_map_.mean, second.data_map_.mean)
    assert torch.equal(first.data_map_.std, second.data_map_.std)


class Dropping(nn.Module):
    """Draws from the global generator while it trains."""

    def __init__(self, layout):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, layout.num_logits))

    def forward(self, inputs):
        return self.net(inputs)
