"""Data, networks and trainers that the tests of DMTGTrainer share."""

from __future__ import annotations

import numpy as np
import torch
from _drawn import drawn

from pymtg import DMTGTrainer, TaskLayout
from pymtg.nets import MLP, BranchedNet, TaskAssignment, mlp
from pymtg.trainers import TrainConfig
from pymtg.trainers._batches import batch_source
from pymtg.trainers._loop import train_network
from pymtg.trainers._progress import reporting
from pymtg.trainers._run import Job
from pymtg.trainers._seeding import stage_seed

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
FAST = {"epochs": 4, "batch_size": 16, "device": "cpu", "num_threads": 1, "progress": False, "lr": 1e-2}


def make(layout=LAYOUT, **options):
    return drawn(layout, **options)


def branched(layout=LAYOUT, branches=3, **options):
    return BranchedNet(lambda: MLP(5, (8,)), branches, layout, **options)


def trainer(net=None, layout=LAYOUT, **options):
    return DMTGTrainer(mlp(5, (8,)) if net is None else net, layout, **{**FAST, **options})


def fit(net=None, layout=LAYOUT, data=None, val=None, **options):
    return trainer(net, layout, **options).fit(make(layout) if data is None else data, val)


def assert_same(first, second, **tolerance):
    same = {"rtol": 0, "atol": 0, **tolerance}
    for name in ("net_", "model_", "assignment_"):
        one, other = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], **same)
    np.testing.assert_allclose(first.assignment_history_, second.assignment_history_, **same)
    assert first.groups_.labels.tolist() == second.groups_.labels.tolist()


def plain_training(net, data, stage, epochs, **options):
    """The common loop on one network for all tasks."""
    config = TrainConfig(**{name: FAST[name] for name in ("batch_size", "device", "lr")}, **options)
    job = Job("plain", net, LAYOUT, stage_seed(0, stage), epochs)
    with reporting(False) as reporter:
        return train_network(job, batch_source(data, LAYOUT, config, "train"), None, config, reporter)


def leaning(gap, branches=3, **options):
    """No task is inclined to the last branch: its theta is so much lower; the others nearly draw."""
    assignment = TaskAssignment(4, branches, **options)
    with torch.no_grad():
        assignment.theta[:, -1] -= gap
        assignment.theta[::2, 0] += 0.05
        assignment.theta[1::2, 1] += 0.05
    return assignment


def opposed(layout=LAYOUT):
    """A validation set whose labels are wrong: the better a network fits, the worse its score."""
    data = make(layout)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    return data.inputs, (data.targets + 1) % counts
