"""DMTGTrainer: groups that were planted, determinism, what it may be given, what it returns."""

from __future__ import annotations

import copy
import json
import os
import random

import numpy as np
import pytest
import torch
from _dmtg import FAST, LAYOUT, assert_same, branched, fit, leaning, make, plain_training, trainer
from sklearn.metrics import adjusted_rand_score
from torch import nn

from pymtg import DMTGTrainer, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, BranchedNet, GroupedNet, MultiHeadNet, Temperature, mlp
from pymtg.trainers import UnlabelledTaskWarning


def planted(seed, rows=4096, noise=0.1):
    """Nine binary tasks in three groups: the sign of one random direction of 24 a group, and a little noise a task."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 24, generator=generator)
    directions = torch.randn(24, 3, generator=generator)
    scores = inputs @ (directions / directions.norm(dim=0))
    truth = [t % 3 for t in range(9)]
    targets = scores[:, truth] + noise * torch.randn(rows, 9, generator=generator) > 0
    return (inputs, targets.long()), truth


def rand_index(seed):
    data, truth = planted(seed + 100)
    layout = TaskLayout.binary([f"t{t}" for t in range(9)])

    def net(layout):
        return BranchedNet(lambda: nn.Linear(24, 1), 3, layout, 1)

    fitted = DMTGTrainer(net, layout, seed=seed, num_threads=1, device="cpu", progress=False).fit(data)
    return adjusted_rand_score(truth, fitted.groups_.labels), fitted


def test_planted_groups_are_found():
    for seed in (0, 1):
        index, fitted = rand_index(seed)
        assert index == 1
        entropies = fitted.result_.entropies
        assert entropies[-1] < entropies[0] / 2
        assert fitted.result_.moved[-1] == 0
        assert fitted.evaluate(planted(seed + 100)[0])["dmtg"].mean["accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    "PYMTG_TEST_LONG" not in os.environ, reason="takes a minute: set PYMTG_TEST_LONG, or make test-long"
)
def test_planted_groups_are_found_with_nearly_every_seed():
    indices = [rand_index(seed)[0] for seed in range(10)]
    assert sum(index == 1 for index in indices) >= 9, indices


def test_same_seed_gives_the_same_bits_and_leaves_random_states_alone():
    options = {"warm_epochs": 1, "finetune_epochs": 1, "sampling": "per_sample", "eps": 0.1}
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    again = trainer(mlp(5, (8,), dropout=0.5), **options)
    first = copy.copy(again.fit(make()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    torch.manual_seed(6)
    assert_same(first, again.fit(make()))
    other = fit(mlp(5, (8,), dropout=0.5), **options, seed=1)
    assert not torch.equal(first.assignment_.theta, other.assignment_.theta)


def test_a_plain_dataset_trains_the_same_as_tensors():
    data = make(missing=True)
    first = fit(data=data)
    assert_same(first, fit(data=[data[i] for i in range(len(data))]))
    assert_same(first, fit(data=(data.inputs.numpy(), data.targets.numpy())))
    scores = first.evaluate([data[i] for i in range(len(data))])["dmtg"]
    assert scores.to_dict() == first.evaluate(data)["dmtg"].to_dict()
    samples = [data[i] for i in range(len(data))]
    assert torch.equal(first.predict_proba(samples), first.predict_proba(data.inputs.numpy()))


@pytest.mark.parametrize("batched", [True, False])
def test_a_given_net_is_left_as_it_is(batched):
    net = branched(batched=batched).eval()
    before = copy.deepcopy(net.state_dict())
    fitted = trainer(net)
    first = copy.copy(fitted.fit(make()))
    assert_same(first, fitted.fit(make()))
    assert not net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(first.net_.heads.linear.weight, net.heads.linear.weight)


@pytest.mark.parametrize("kept", ["branched", "multihead", "multihead, run one by one"])
def test_a_net_that_a_factory_keeps_is_left_as_it_is(kept):
    net = branched() if kept == "branched" else mlp(5, (600, 600) if "one by one" in kept else (8,))(LAYOUT)
    before = copy.deepcopy(net.state_dict())
    fitted = trainer(lambda layout: net, num_groups=3)
    first = copy.copy(fitted.fit(make()))
    assert_same(first, fitted.fit(make()))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("net", [mlp(5, (8,)), branched, branched(), lambda layout: MultiHeadNet(layout, MLP(5, (8,)))])
def test_forms_of_net(net):
    fitted = fit(net, drop_branches=False)
    assert isinstance(fitted.net_, BranchedNet)
    assert fitted.net_.num_branches == 3
    assert fitted.assignment_history_.shape == (5, 4, 3)
    assert fitted.result_.num_branches == 3
    np.testing.assert_allclose(fitted.assignment_history_.sum(2), 1)
    np.testing.assert_allclose(fitted.assignment_history_[0], 1 / 3)
    np.testing.assert_array_equal(fitted.assignment_history_[-1], fitted.groups_.memberships)
    history = fitted.result_.stages[0].history
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("trunk", [None, "shared"])
def test_the_pruned_model_is_the_chosen_heads(trunk):
    shared = None if trunk is None else nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    fitted = fit(branched(trunk=shared), eps=1.0)
    model, net, inputs = fitted.model_.eval(), fitted.net_.eval(), make(seed=3).inputs
    labels = fitted.assignment_.labels()
    assert isinstance(model, GroupedNet)
    assert len(model.branches) == len(set(labels.tolist()))
    wanted = net(inputs)
    logits = model(inputs)
    for t, name in enumerate(LAYOUT):
        columns = LAYOUT.columns(name)
        torch.testing.assert_close(logits[:, columns], wanted[labels[t]][:, columns], rtol=1e-6, atol=1e-6)
    exported = torch.export.export(model, (inputs,))
    torch.testing.assert_close(exported.module()(inputs), logits)
    torch.testing.assert_close(fitted.prune().eval()(inputs), logits, rtol=0, atol=0)
    probabilities = fitted.predict_proba(inputs)
    for name, count in zip(LAYOUT, LAYOUT.num_classes, strict=True):
        own = logits[:, LAYOUT.columns(name)]
        expected = own.sigmoid() if count == 1 else own.softmax(1)
        torch.testing.assert_close(probabilities[:, LAYOUT.columns(name)], expected)
        chosen = (own[:, 0] > 0).long() if count == 1 else own.argmax(1)
        assert torch.equal(fitted.predict(inputs)[:, LAYOUT.index(name)], chosen)
    assert fitted.result_.parameters == sum(p.numel() for p in model.parameters())
    assert fitted.result_.parameters < fitted.result_.parameters_before_pruning


@pytest.mark.parametrize("sampling", ["gumbel", "hard", "per_sample"])
@pytest.mark.parametrize("missing", [False, True])
def test_one_branch_trains_as_one_network_for_all_tasks(sampling, missing):
    data = make(missing=missing)
    net = branched(branches=1)
    single = MultiHeadNet(LAYOUT, net.branch_module(0), net.features)
    with torch.no_grad():
        single.head.weight.copy_(net.heads.linear.weight[0].T)
        single.head.bias.copy_(net.heads.linear.bias[0])
    plain = plain_training(lambda: single, data, "dmtg", FAST["epochs"])
    fitted = fit(net, data=data, sampling=sampling, temperature=0.3, entropy_weight=0.7)
    assert fitted.groups_.parameters["num_groups"] == 1
    for mine, theirs in zip(fitted.result_.stages[0].history, plain.stage.history, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert mine.task_losses == pytest.approx(theirs.task_losses, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(fitted.model_(data.inputs), plain.network(data.inputs), rtol=1e-4, atol=1e-4)


def test_missing_labels_and_a_task_without_any():
    data = make(missing=True)
    data.targets[:, 2] = -100
    with pytest.warns(UnlabelledTaskWarning, match="1 task: "):
        fitted = fit(data=data, record=True, finetune_epochs=1)
    assert fitted.data_map_.missing
    assert all(record.task_losses[2] == 0 for stage in fitted.result_.stages for record in stage.history)
    assert np.isfinite(fitted.predict_proba(data).numpy()).all()


@pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (1, 3), (2, 5), (4, 1), (4, 9)])
def test_extreme_sizes(tasks, groups):
    layout = LAYOUT.select(range(tasks))
    fitted = fit(layout=layout, num_groups=groups, init="diagonal")
    assert fitted.groups_.memberships.shape == (tasks, groups)
    assert fitted.predict_proba(make(layout)).shape == (61, layout.num_logits)
    assert len(fitted.model_.branches) == len(set(fitted.groups_.labels.tolist())) <= tasks


def test_the_result_adds_up():
    seen = []
    fitted = fit(
        val=make(seed=1),
        warm_epochs=1,
        finetune_epochs=2,
        on_epoch_end=lambda stage, record: seen.append((stage, record.epoch)),
        assignment=leaning(1e4),
        assignment_warmup=0.5,
        temperature=Temperature(3, 1),
    )
    result = fitted.result_
    expected = [("warm start", 1), *(("dmtg", e) for e in (1, 2, 3, 4)), *(("fine-tuning", e) for e in (1, 2))]
    assert seen == expected
    assert result.epochs == 7
    assert result.seconds == sum(stage.seconds for stage in result.stages) > 0
    assert len(result.temperatures) == len(result.entropies) == len(result.moved) == 5
    text = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert text["dropped"] == {"2": 1}
    assert [stage["name"] for stage in text["stages"]] == ["warm start", "dmtg", "fine-tuning"]
    assert text["groups"]["num_groups"] == text["num_branches"] == 3
    assert result.parameters_before_pruning > result.parameters


def test_amp_on_the_cpu():
    plain, half = fit(), fit(amp="bfloat16", record=True, finetune_epochs=1)
    assert half.predict_proba(make()).dtype == torch.float32
    assert half.net_.heads.linear.weight.dtype == torch.float32
    assert not torch.equal(half.net_.heads.linear.weight, plain.net_.heads.linear.weight)
    loss = plain.result_.stages[0].history[-1].loss
    assert half.result_.stages[0].history[-1].loss == pytest.approx(loss, rel=0.05)


def test_the_scheduler_steps_once_an_epoch_and_leaves_theta_alone():
    made = []

    def halving(optimizer):
        made.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
        return made[-1]

    fit(scheduler=halving, warm_epochs=1, finetune_epochs=1, assignment=leaning(1e4))
    assert [schedule.get_last_lr()[0] for schedule in made] == pytest.approx([5e-3, 1e-2 / 16, 5e-3])


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    fit(progress=True, warm_epochs=1, finetune_epochs=2)
    assert "7/7 epochs" in capsys.readouterr().err


def test_odd_kinds_of_numbers_and_inputs():
    pandas = pytest.importorskip("pandas")
    fitted = fit(seed=np.int64(3), assignment_lr=np.float32(0.01), epochs=np.int32(2))
    data = make()
    expected = fitted.predict_proba(data.inputs)
    torch.testing.assert_close(fitted.predict_proba(pandas.DataFrame(data.inputs.numpy())), expected)
    with pytest.raises(InvalidTypeError, match="inputs must hold numbers; got dtype object"):
        fitted.predict_proba(pandas.DataFrame({"a": ["x"]}).astype(object))
    with pytest.raises(InvalidArgumentError, match="num_groups must be left out or be the network's own, 3; got 5"):
        trainer(branched(), num_groups=5)
    with pytest.raises(InvalidTypeError, match="keep_best must be True or False; got 'a'"):
        trainer(keep_best="a")
    assert not any(part.training for part in fitted.model_.modules())
