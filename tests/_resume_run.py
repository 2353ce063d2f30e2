"""Runs that are stopped and gone on with: what test_resume*.py train, in their own process and in others."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pymtg import DMTGTrainer, STGTrainer, TaskLayout
from pymtg.data import from_arrays
from pymtg.nets import MLP, BranchedNet

LAYOUT = TaskLayout(["a", "b", "c", "d", "e"], [1, 3, 1, 2, 1])
FAST = {"batch_size": 16, "device": "cpu", "num_threads": 1, "progress": False, "lr": 1e-2}


class Bomb(Exception):  # noqa: N818
    """What ends a run in its own process."""


class Countdown:
    """Raises at its n-th call; counts on where n is None."""

    def __init__(self, left=None):
        self.left, self.calls = left, 0

    def __call__(self):
        self.calls += 1
        if self.calls == self.left:
            raise Bomb


class Network(nn.Module):
    """Draws from torch's global generator while it trains, and counts batches in its statistics."""

    def __init__(self, layout, countdown=lambda: None):
        super().__init__()
        self.countdown = countdown
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, layout.num_logits)

    def forward(self, inputs):
        if self.training:
            self.countdown()
        return self.head(self.body(inputs))


class Counting(nn.Module):
    """A trunk that calls a countdown."""

    def __init__(self, countdown):
        super().__init__()
        self.countdown, self.layer, self.dropout = countdown, nn.Linear(6, 8), nn.Dropout(0.2)

    def forward(self, inputs):
        if self.training:
            self.countdown()
        return self.dropout(torch.relu(self.layer(inputs)))


class Noisy:
    """A dataset whose samples change with every reading, by all three global generators."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        inputs, targets = self.data[i]
        noise = random.gauss(0, 0.1) + np.random.normal(scale=0.1)  # noqa: NPY002
        return inputs + noise + 0.1 * torch.randn(6), targets


def make(seed, rows=150, layout=LAYOUT, missing=True):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    scores = inputs @ torch.randn(6, layout.num_tasks, generator=generator)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    targets = (torch.sigmoid(scores) * counts).long().clamp(max=counts - 1)
    if missing:
        targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    return from_arrays(inputs, targets, layout)


def stg(seed, countdown=lambda: None, **options):
    plan = {"num_groups": 2, "epochs": 5, "specialised_epochs": 3, "keep_best": True, "seed": seed}
    return STGTrainer(lambda layout: Network(layout, countdown), LAYOUT, **{**FAST, **plan, **options})


def dmtg(seed, countdown=lambda: None, **options):
    def net(layout):
        return BranchedNet(lambda: MLP(8, (6,)), 4, layout, trunk=Counting(countdown))

    plan = {"epochs": 6, "warm_epochs": 2, "finetune_epochs": 2, "record": True, "keep_best": True, "seed": seed}
    return DMTGTrainer(net, LAYOUT, **{**FAST, **plan, "assignment_lr": 0.3, "temperature": 1.0, **options})


def together(seed, **options):
    """STG with specialised networks that can be trained at once."""

    def network(layout):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, layout.num_logits))

    plan = {"num_groups": 2, "epochs": 5, "specialised_epochs": 3, "keep_best": True, "seed": seed}
    return STGTrainer(network, LAYOUT, **{**FAST, **plan, "specialise": "together", **options})


def adagrad(parameters):
    return torch.optim.Adagrad(parameters, lr=0.02)


def milestones(optimizer):
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 4], gamma=0.3)


def learned(trainer):
    """All that a fitted trainer holds but the seconds, as tensors and plain values."""
    names = ("joint_model_", "net_", "model_", "assignment_")
    networks = [getattr(trainer, name, None) for name in names] + list(getattr(trainer, "models_", []))
    tensors = {f"{i}.{k}": v for i, net in enumerate(networks) if net is not None for k, v in net.state_dict().items()}
    data_map = trainer.data_map_.state_dict() if trainer.data_map_ is not None else {}
    tensors |= {f"map.{name}": value for name, value in data_map.items() if isinstance(value, torch.Tensor)}
    if hasattr(trainer, "assignment_history_"):
        tensors["history"] = torch.from_numpy(trainer.assignment_history_)
    told = trainer.result_.to_dict()
    return tensors, without_seconds(told)


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if "seconds" not in key}
    return [without_seconds(entry) for entry in value] if isinstance(value, list) else value


def assert_same(one, other):
    assert json.dumps(one[1], sort_keys=True) == json.dumps(other[1], sort_keys=True)
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert value.dtype == other[0][name].dtype
        assert torch.equal(value.contiguous().view(-1), other[0][name].contiguous().view(-1)), name


TRAINERS = {"stg": stg, "dmtg": dmtg}
EPOCHS = {
    "stg": {"epochs": 12, "specialised_epochs": 8},
    "dmtg": {"epochs": 16, "warm_epochs": 6, "finetune_epochs": 6},
}
EPOCHS["together"] = EPOCHS["stg"]


def train(method, seed, folder, out):
    """In a process of its own: go on in `folder`, write what was learned to `out`."""
    torch.set_num_threads(1)
    places = {} if folder is None else {"checkpoint_dir": f"{folder}/kept", "log": f"{folder}/log.jsonl"}
    slow = {"on_epoch_end": lambda stage, record: time.sleep(0.025)}  # a fast machine is done before it is killed
    build = {**TRAINERS, "together": together}[method]
    trainer = build(seed, **EPOCHS[method], checkpoint_every="1,0.1s", **slow, **places)
    trainer.fit(make(seed, 400), make(seed + 1), resume=folder is not None)
    tensors, told = learned(trainer)
    part = Path(f"{out}.part")
    torch.save((tensors, json.dumps(told)), part)
    part.rename(out)


def train_on_a_full_disk(method, seed, folder, out):
    """Go on until a limit on the size of files stands for a full disk; write what was raised."""
    torch.set_num_threads(1)
    seen = []

    def fill(stage, record):
        seen.append(stage)
        if len(seen) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    try:
        trainer = TRAINERS[method](seed, checkpoint_dir=folder, on_epoch_end=fill)
        trainer.fit(make(seed), make(seed + 1))
    except OSError as error:
        Path(out).write_text(f"{type(error).__name__} {error}", encoding="utf-8")
