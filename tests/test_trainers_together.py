"""K networks trained together against the same ones trained one by one, and what cannot be trained together."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _together import LAYOUTS, assert_same, images, make, normed, one_by_one, setting_of, small, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pymtg import STGTrainer, TaskLayout
from pymtg.errors import InvalidArgumentError
from pymtg.nets import mlp
from pymtg.nets._stacked import CannotStackError
from pymtg.trainers import NonFiniteLossError
from pymtg.trainers._loop import train_network
from pymtg.trainers._run import Run
from pymtg.trainers._seeding import stage_seed
from pymtg.trainers._together import _check_precision, train_together

LAYOUT = LAYOUTS["ragged"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_results_whatever_the_tasks(layout, seed):
    layout = LAYOUTS[layout]
    train, val = make(layout, seed), make(layout, seed + 1, rows=40)
    setting = setting_of(small, train, val, seed, keep_best=True, lr=0.1)
    found = assert_same(setting, weights_of(layout, 3, seed), epochs=5)
    assert all(trained.stage.best_epoch in range(1, 6) for trained in found)
    assert len({tuple(t.network.head.bias.tolist()) for t in found}) == 3


@pytest.mark.parametrize(("model", "shape"), [(small, (5,)), (normed, (5,)), (images, (2, 6, 5))])
@pytest.mark.parametrize("start", [False, True])
def test_the_same_results_whatever_the_network(model, shape, start, seed):
    train = make(LAYOUT, seed, shape=shape)
    setting = setting_of(model, train, make(LAYOUT, seed + 1, shape=shape), seed)
    first = setting.joint(epochs=1).network if start else None
    before = None if first is None else copy.deepcopy(first.state_dict())
    found = assert_same(setting, weights_of(LAYOUT, 2, seed), epochs=2, start=first)
    assert all(trained.stage.best_epoch is None for trained in found)
    if before is not None:
        torch.testing.assert_close(dict(first.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::pymtg.trainers.UnlabelledTaskWarning")
@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    networks=st.integers(1, 4),
    rows=st.integers(2, 40),
    batch=st.integers(1, 20),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_the_same_results_for_any_sizes(counts, networks, rows, batch, missing, seed):
    layout = TaskLayout([f"{i} t" for i in range(len(counts))], counts)
    train = make(layout, seed, rows, missing)
    train.targets[0, 0] = 0  # a set without any label is refused
    setting = setting_of(small, train, seed=seed, batch_size=batch)
    assert_same(setting, weights_of(layout, networks, seed), epochs=2)


def by_dimensions(kind, **options):
    """Weight matrices and biases in groups of their own, as is usual for weight decay."""

    def factory(parameters):
        every = list(parameters)
        matrices, rest = [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]
        assert matrices
        return kind([{"params": matrices, "weight_decay": 0.1}, {"params": rest, "lr": 0.02}], lr=0.05, **options)

    return factory


OPTIMIZERS = {
    "SGD": by_dimensions(torch.optim.SGD, momentum=0.9, nesterov=True),
    "AdamW": by_dimensions(torch.optim.AdamW, amsgrad=True),
    "RMSprop": by_dimensions(torch.optim.RMSprop, centered=True),
    "Adagrad": by_dimensions(torch.optim.Adagrad),
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "Adamax": torch.optim.Adamax,
    "RAdam": torch.optim.RAdam,
    "Adadelta": torch.optim.Adadelta,
    "a part of them": lambda parameters: torch.optim.NAdam(list(parameters)[2:]),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_and_schedulers(optimizer, seed):
    def warmed(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)

    setting = setting_of(small, make(LAYOUT, seed), seed=seed, optimizer=OPTIMIZERS[optimizer], scheduler=warmed)
    assert_same(setting, weights_of(LAYOUT, 3, seed))


def test_frozen_layers_stay(seed):
    def frozen(layout):
        network = small(layout)
        network.backbone.layers[0].requires_grad_(False)
        return network

    found = assert_same(setting_of(frozen, make(LAYOUT, seed), seed=seed), weights_of(LAYOUT, 2, seed))
    assert not found[1].network.backbone.layers[0].weight.requires_grad
    assert found[1].network.head.weight.requires_grad


def test_the_network_that_fails_is_named(seed):
    made = itertools.count()

    def second_is_broken(layout):
        network = small(layout)
        if next(made) == 1:
            network.head.bias.data[0] = torch.nan
        return network

    setting = setting_of(second_is_broken, make(LAYOUT, seed), seed=seed, batch_size=100)
    with pytest.raises(NonFiniteLossError, match="stage 'group 1', epoch 1: the loss of 'a' became NaN"):
        train_together(setting, weights_of(LAYOUT, 3, seed), epochs=1)

    def huge(parameters):
        return torch.optim.SGD(parameters, lr=1e308)

    weights = np.zeros((4, 3))
    weights[:, 2] = 1e5
    setting = setting_of(small, make(LAYOUT, seed), seed=seed, optimizer=huge, batch_size=100)
    with pytest.raises(NonFiniteLossError, match="stage 'group 2', epoch 1: a weight of the network became NaN or inf"):
        train_together(setting, weights, epochs=1)


class Read:
    """A dataset that is read sample by sample, and counts how often."""

    def __init__(self, data):
        self.data, self.reads = data, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        self.reads += 1
        return self.data[i]


def test_a_dataset_is_read_once_for_all_in_the_order_of_the_first(seed):
    class InFirstOrder(Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.order.manual_seed(stage_seed(seed, "group", 0))

    data = Read(make(LAYOUT, seed))
    setting = setting_of(small, data, seed=seed, layout=LAYOUT)
    weights = weights_of(LAYOUT, 3, seed)
    jobs = []

    def keep(job, *arguments, **options):
        jobs.append(job)
        return train_network(job, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymtg.trainers._stages.train_network", keep)
        first = one_by_one(setting, weights)[0]
    alone = [train_network(job, setting.train, None, setting.config, setting.reporter, InFirstOrder) for job in jobs]
    torch.testing.assert_close(alone[0].network.state_dict(), first.network.state_dict(), rtol=0, atol=0)
    data.reads = 0
    assert_same(setting, weights, alone=alone)
    assert data.reads == 3 * len(data)  # epochs


# what cannot be trained together


class Own(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layer = nn.Linear(5, layout.num_logits)

    def forward(self, inputs):
        return self.layer(inputs)


class Slow(torch.optim.SGD):
    """A kind that nobody knows."""


def hooked(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


REFUSED = {
    "dropout": ({"model": mlp(5, (8,), dropout=0.5)}, r"layer 'backbone\.layers\.2' \(Dropout\) draws masks"),
    "own module": ({"model": Own}, "Own has no stacked form"),
    "optimizer by norms": ({"optimizer": torch.optim.Adafactor}, "optimizer Adafactor is not known to treat every"),
    "a subclass": ({"optimizer": lambda p: Slow(p, lr=0.1)}, "optimizer Slow is not known"),
    "hooks": ({"optimizer": hooked}, "the optimizer SGD has hooks"),
}


def trainer_of(model=None, layout=LAYOUT, **options):
    fast = {"epochs": 2, "batch_size": 16, "num_groups": 2, "device": "cpu", "progress": False}
    return STGTrainer(mlp(5, (8,)) if model is None else model, layout, **{**fast, **options})


def tensors(seed=0):
    data = make(LAYOUT, seed)
    return data.inputs.float(), data.targets


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_together_is_refused_before_anything_is_trained(case):
    options, message = REFUSED[case]
    seen = []
    trainer = trainer_of(**options, specialise="together", on_epoch_end=lambda *_: seen.append(1))
    rule = "specialise must be 'auto' or 'one-by-one' for these networks, which cannot be trained together: "
    with pytest.raises(InvalidArgumentError, match=f"{rule}.*{message}"):
        trainer.fit(tensors())
    assert not seen
    if case != "optimizer by norms":
        assert not trainer_of(**options).fit(tensors()).result_.together


def test_loss_scaling_is_each_networks_own():
    with pytest.raises(CannotStackError, match="amp='float16' scales the loss of each"):
        _check_precision(SimpleNamespace(amp_dtype=torch.float16))


def test_a_factory_whose_networks_differ():
    widths = itertools.cycle([8, 8, 9])

    def differing(layout):
        return mlp(5, (next(widths),))(layout)

    assert not trainer_of(differing).fit(tensors()).result_.together
    widths = itertools.cycle([8, 8, 8, 9])
    with pytest.raises(InvalidArgumentError, match="cannot be trained together: branch 1 is built otherwise"):
        trainer_of(differing, specialise="together").fit(tensors())


# auto


def test_auto_is_together_where_that_is_measured_to_be_faster():
    assert trainer_of().fit(tensors()).result_.together
    rows = [(x, y) for x, y in zip(*tensors(), strict=True)]
    assert not trainer_of().fit(rows).result_.together
    assert trainer_of(specialise="together").fit(rows).result_.together
    large = [{"model": mlp(5, (1024, 1024))}, {"model": mlp(5, (512, 512)), "batch_size": 256}]
    for options in (*large, {"num_groups": 1}, {"amp": True}, {"specialise": "one-by-one"}):
        assert not trainer_of(**options).fit(tensors()).result_.together


def test_auto_and_one_by_one_agree():
    one, other = (trainer_of(specialise=form).fit(tensors()) for form in ("auto", "one-by-one"))
    torch.testing.assert_close(one.predict_proba(tensors()[0]), other.predict_proba(tensors()[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(one.joint_model_.state_dict(), other.joint_model_.state_dict(), rtol=0, atol=0)


def test_half_precision_agrees_as_far_as_it_goes():
    one, other = (trainer_of(specialise=form, amp=True).fit(tensors()) for form in ("together", "one-by-one"))
    torch.testing.assert_close(one.predict_proba(tensors()[0]), other.predict_proba(tensors()[0]), rtol=0, atol=0.05)


def test_the_same_seed_gives_the_same_bits():
    first, second = (trainer_of(specialise="together").fit(tensors()) for _ in range(2))
    for one, other in zip(first.models_, second.models_, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
