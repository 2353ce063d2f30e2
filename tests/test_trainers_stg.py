"""STGTrainer: determinism, the map that is recorded, weights, and what a training takes and returns."""

from __future__ import annotations

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from _stg import FAST, LAYOUT, Dropping, assert_same, fit, make, states
from torch import nn

from pymtg import MultiTaskLoss, STGTrainer
from pymtg.trainers import UnlabelledTaskWarning


@pytest.mark.parametrize("init", ["fresh", "joint"])
def test_same_seed_gives_the_same_bits(init):
    first, second = (STGTrainer(Dropping, LAYOUT, num_groups=2, init=init, **FAST).fit(make()) for _ in range(2))
    assert_same(first, second)
    other = STGTrainer(Dropping, LAYOUT, num_groups=2, init=init, seed=1, **FAST).fit(make())
    assert not torch.equal(states(first)[0]["net.0.weight"], states(other)[0]["net.0.weight"])


def test_a_plain_dataset_trains_the_same_as_tensors():
    data = make()
    alone = {"specialise": "one-by-one"}  # as a dataset's specialised networks are trained
    assert_same(fit(data=data, **alone), fit(data=[data[i] for i in range(len(data))]))
    assert_same(fit(data=data), fit(data=(data.inputs.numpy(), data.targets.numpy())))
    assert_same(fit(data=data), fit(data=torch.utils.data.TensorDataset(data.inputs, data.targets)))


def test_the_callers_random_states_are_left_alone():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    trainer = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    trainer.predict_proba(make())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_the_callers_random_state_does_not_matter():
    torch.manual_seed(1)
    first = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    torch.manual_seed(2)
    assert_same(first, STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make()))


class Spy(nn.Module):
    """Reads the sample's number off an extra input column, and keeps what it returned for it in training mode."""

    seen: list

    def __init__(self, layout):
        super().__init__()
        self.net, self.seen = nn.Linear(5, layout.num_logits), []

    def forward(self, inputs):
        logits = self.net(inputs[:, :5])
        if self.training:
            self.seen.append((inputs[:, 5].long(), logits.detach().clone()))
        return logits


@pytest.mark.parametrize("missing", [False, True])
def test_the_map_holds_the_training_passes_probabilities(missing):
    data = make(missing=missing)
    marked = torch.cat([data.inputs, torch.arange(len(data)).float()[:, None]], dim=1)
    trainer = STGTrainer(Spy, LAYOUT, num_groups=2, **FAST).fit((marked, data.targets), (marked[:9], data.targets[:9]))
    seen = [[] for _ in range(len(data))]
    for ids, logits in trainer.joint_model_.seen:
        parts = LAYOUT.probabilities(logits.double())
        for row, i in enumerate(ids.tolist()):
            gold = data.targets[i].clamp(min=0).tolist()
            seen[i].append([part[row, y].item() for part, y in zip(parts, gold, strict=True)])
    history = torch.tensor(seen, dtype=torch.float64)  # [M, epochs, T]
    assert history.shape == (len(data), 4, 4)
    known = data.targets != -100
    torch.testing.assert_close(trainer.data_map_.mean.double()[known], history.mean(1)[known], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        trainer.data_map_.std.double()[known], history.std(1, correction=0)[known], atol=1e-6, rtol=0
    )
    assert trainer.data_map_.missing == missing
    assert trainer.result_.snapshot_epochs == (1, 2, 3, 4)
    assert len(trainer.data_map_.snapshots) == 4


def test_specialised_networks_step_along_the_weighted_loss():
    built, data = [], make()

    def factory(layout):
        network = nn.Linear(5, layout.num_logits)
        built.append(copy.deepcopy(network))
        return network

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    options = {**FAST, "batch_size": 100, "specialised_epochs": 1, "optimizer": sgd, "fuzzifier": 2.0}
    trainer = STGTrainer(factory, LAYOUT, num_groups=2, **options).fit(data)
    memberships = torch.tensor(trainer.groups_.memberships).float()
    assert ((memberships > 0.01) & (memberships < 0.99)).any()  # else the test would show little
    for k, network in enumerate(trainer.models_):
        start = built[1 + k]
        total = MultiTaskLoss(LAYOUT, task_weights=memberships[:, k])(start(data.inputs), data.targets)
        total.backward()
        torch.testing.assert_close(network.weight, start.weight - 0.1 * start.weight.grad)


def test_a_task_outside_the_group_adds_nothing():
    built = []

    def factory(layout):
        network = nn.Linear(5, layout.num_logits)
        built.append(copy.deepcopy(network))
        return network

    trainer = STGTrainer(factory, LAYOUT, num_groups=4, mode="kmeans", **FAST).fit(make())
    assert sorted(trainer.groups_.labels) == [0, 1, 2, 3]  # K = T: each task on its own
    for k, network in enumerate(trainer.models_):
        for t, label in enumerate(trainer.groups_.labels):
            moved = not torch.equal(network.weight[LAYOUT.columns(t)], built[1 + k].weight[LAYOUT.columns(t)])
            assert moved == (label == k)


@pytest.mark.parametrize("form", ["together", "one-by-one"])
def test_result_adds_up(form):
    seen = []

    def note(stage, record):
        seen.append((stage, record.epoch))

    trainer = fit(init="joint", on_epoch_end=note, specialise=form)
    result = trainer.result_
    assert [stage.name for stage in result.stages] == ["joint", "group 0", "group 1"]
    assert [stage.epochs for stage in result.stages] == [4, 2, 2]
    steps = [(k, e) for k in (0, 1) for e in (1, 2)] if form == "one-by-one" else [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert seen == [("joint", e) for e in (1, 2, 3, 4)] + [(f"group {k}", e) for k, e in steps]
    assert result.together == (form == "together")
    assert result.epochs == 8
    assert result.parameters == 2 * sum(p.numel() for p in trainer.joint_model_.parameters())
    assert result.seconds >= sum(stage.seconds for stage in result.stages)
    losses = result.joint.history[0]
    assert losses.loss == pytest.approx(sum(losses.task_losses), rel=1e-5)
    assert result.joint.history[-1].loss < losses.loss
    assert set(result.to_dict()) >= {"seed", "stages", "groups", "snapshot_epochs"}


@pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (2, 2), (4, 1), (4, 4), (4, "auto")])
def test_extreme_numbers_of_groups(tasks, groups):
    layout = LAYOUT.select(range(tasks))
    trainer = fit(layout, num_groups=groups)
    assert trainer.groups_.memberships.shape[0] == tasks
    assert len(trainer.models_) == trainer.groups_.memberships.shape[1]
    assert np.isfinite(trainer.predict_proba(make(layout)).numpy()).all()


def test_missing_labels_and_a_task_without_any():
    data = make(missing=True)
    data.targets[:, 2] = -100
    with pytest.warns(UnlabelledTaskWarning, match=r"train holds no label for 1 task: 'c'\. Nothing is learned"):
        trainer = fit(data=data)
    assert trainer.data_map_.missing
    assert trainer.result_.joint.history[0].task_losses[2] == 0


def test_amp_on_the_cpu():
    trainer = fit(amp="bfloat16")
    assert trainer.predict_proba(make()).dtype == torch.float32
    assert not torch.equal(states(trainer)[0]["head.weight"], states(fit())[0]["head.weight"])
    assert trainer.result_.joint.history[-1].loss == pytest.approx(fit().result_.joint.history[-1].loss, rel=0.05)


@pytest.mark.parametrize(("form", "schedules"), [("together", 2), ("one-by-one", 3)])
def test_scheduler_steps_once_an_epoch(form, schedules):
    rates = []

    def halving(optimizer):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        rates.append(schedule)
        return schedule

    fit(scheduler=halving, specialise=form)
    assert [schedule.get_last_lr()[0] for schedule in rates] == [pytest.approx(1e-3 / 2**4)] * schedules


def test_dict_inputs():
    data = make()
    samples = [({"x": x, "n": torch.tensor(1.0)}, y) for x, y in (data[i] for i in range(len(data)))]

    class Net(nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.net = nn.Linear(5, layout.num_logits)

        def forward(self, inputs):
            return self.net(inputs["x"]) * inputs["n"][:, None]

    trainer = STGTrainer(Net, LAYOUT, num_groups=2, **FAST).fit(samples)
    assert trainer.predict_proba(samples).shape == (61, LAYOUT.num_logits)


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    fit(progress=True)
    assert "12/12 epochs" in capsys.readouterr().err
    fit(progress=None)
    assert capsys.readouterr().err == ""


def test_importing_trainers_is_light():
    code = (
        "import sys, pymtg.trainers; print([m for m in ('sklearn', 'rich', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
