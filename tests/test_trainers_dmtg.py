"""DMTGTrainer: groups that were planted, the stages, dropped branches, determinism, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from pymtg import DMTGTrainer, MultiTaskLoss, TaskLayout
from pymtg.data import from_arrays
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, BranchedNet, GroupedNet, MultiHeadNet, TaskAssignment, Temperature, mlp
from pymtg.trainers import NonFiniteLossError, NotFittedError, TrainConfig, UnlabelledTaskWarning
from pymtg.trainers._batches import batch_source
from pymtg.trainers._loop import train_network
from pymtg.trainers._progress import reporting
from pymtg.trainers._run import Job
from pymtg.trainers._seeding import stage_seed

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
FAST = {"epochs": 4, "batch_size": 16, "device": "cpu", "num_threads": 1, "progress": False, "lr": 1e-2}
FITTED = ("net_", "assignment_", "model_", "groups_", "assignment_history_", "data_map_", "result_")


def make(layout=LAYOUT, rows=61, seed=0, missing=False):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    scores = inputs @ torch.randn(5, layout.num_tasks, generator=generator)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    targets = (torch.sigmoid(scores) * counts).long().clamp(max=counts - 1)
    if layout.has_regression:
        chosen = torch.tensor([kind == "regression" for kind in layout.kinds])
        targets = torch.where(chosen, scores, targets.float())
    if missing:
        gap = torch.nan if targets.is_floating_point() else -100
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = gap
    return from_arrays(inputs, targets, layout)


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


def plain_training(net, data, stage, epochs, **options):
    """The common loop on one network for all tasks."""
    config = TrainConfig(**{name: FAST[name] for name in ("batch_size", "device", "lr")}, **options)
    job = Job("plain", net, LAYOUT, stage_seed(0, stage), epochs)
    with reporting(False) as reporter:
        return train_network(job, batch_source(data, LAYOUT, config, "train"), None, config, reporter)


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


def leaning(gap, branches=3, **options):
    """No task is inclined to the last branch: its theta is so much lower; the others nearly draw."""
    assignment = TaskAssignment(4, branches, **options)
    with torch.no_grad():
        assignment.theta[:, -1] -= gap
        assignment.theta[::2, 0] += 0.05
        assignment.theta[1::2, 1] += 0.05
    return assignment


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("sampling", ["gumbel", "hard", "softmax", "per_sample"])
def test_dropping_a_branch_changes_nothing_for_the_others(sampling, batched):
    net, given = branched(batched=batched), leaning(1e4, sampling=sampling, seed=7)
    with_drops, without = (
        fit(net, assignment=given, drop_branches=drop, assignment_warmup=0.5) for drop in (True, False)
    )
    assert (with_drops.result_.dropped, without.result_.dropped) == ({2: 1}, {})
    assert (with_drops.net_.branch_ids, without.net_.branch_ids) == ((0, 1), (0, 1, 2))
    assert with_drops.assignment_.draws == without.assignment_.draws == (0 if sampling == "softmax" else 16)
    assert given.draws == 0
    assert given.theta.grad is None
    assert with_drops.groups_.labels.tolist() == without.groups_.labels.tolist()
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(with_drops.assignment_history_, without.assignment_history_, **close)
    torch.testing.assert_close(with_drops.assignment_.theta, without.assignment_.theta[:, :2], **close)
    for k in range(2):
        one, other = (fitted.net_.branch_module(k).state_dict() for fitted in (with_drops, without))
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], **close)
    weight = without.net_.heads.linear.weight[:2]
    torch.testing.assert_close(with_drops.net_.heads.linear.weight, weight, **close)
    assert not torch.equal(weight, net.heads.linear.weight[:2])
    assert with_drops.result_.parameters == without.result_.parameters
    for fitted in (with_drops, without):
        assert fitted.result_.parameters_before_pruning == sum(p.numel() for p in net.parameters()) + 4 * 3


def opposed(layout=LAYOUT):
    """A validation set whose labels are wrong: the better a network fits, the worse its score."""
    data = make(layout)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    return data.inputs, (data.targets + 1) % counts


def test_the_best_epoch_is_kept_with_the_branches_it_had():
    """Theta rests: after epoch 1 Adam may still make up 0.2, after epoch 2 no more, and branch 2 goes."""
    options = {"assignment": leaning(0.15), "assignment_warmup": 0.9, "keep_best": True, "monitor": "loss"}
    fitted = fit(val=opposed(), **options)
    (stage,) = fitted.result_.stages
    scores = [record.val_score for record in stage.history]
    assert stage.best_epoch == 1 == 1 + int(np.argmax(scores))
    assert fitted.result_.dropped == {}  # it went in an epoch that does not count any more
    assert fitted.net_.branch_ids == fitted.assignment_.branch_ids == (0, 1, 2)
    last = fit(val=make(), **options)
    assert last.result_.stages[0].best_epoch > 2
    assert last.net_.branch_ids == last.assignment_.branch_ids == (0, 1)
    assert last.result_.dropped == {2: 2}
    short = fit(val=opposed(), **{**options, "assignment": leaning(0.15), "epochs": 1, "keep_best": False})
    for name, value in short.net_.state_dict().items():  # the same first epoch
        assert torch.equal(fitted.net_.state_dict()[name], value)


def test_training_goes_on_from_a_fit_with_dropped_branches():
    first = fit(branched(branches=4), assignment=leaning(1e4, branches=4), assignment_warmup=0.9)
    assert first.assignment_.branch_ids == (0, 1, 2)
    with torch.no_grad():
        first.assignment_.theta[:, 0] -= 1e4
    first.net_.drop_branches([1, 2])
    first.assignment_.drop([1, 2])
    second = fit(first.net_, assignment=first.assignment_)
    assert second.assignment_history_.shape == (5, 4, 2)
    np.testing.assert_allclose(second.assignment_history_.sum(2), 1)
    assert set(second.groups_.labels.tolist()) <= {0, 1}
    third = fit(first.net_, assignment=first.assignment_, drop_branches=False)
    assert third.net_.branch_ids == (1, 2)


class Trunk(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())


@pytest.mark.parametrize("freeze", [True, False])
def test_finetuning(freeze):
    net = BranchedNet(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), 3, LAYOUT, 4, trunk=Trunk())
    fitted = fit(net, finetune_epochs=2, freeze_trunk=freeze)
    pruned, model = fitted.prune(), fitted.model_
    assert [stage.name for stage in fitted.result_.stages] == ["dmtg", "fine-tuning"]
    assert fitted.result_.epochs == 6
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, pruned.trunk.state_dict()[name]) == freeze, name
    assert not torch.equal(model.branches[0][0].weight, pruned.branches[0][0].weight)
    assert not torch.equal(model.branches[0][1].running_mean, pruned.branches[0][1].running_mean)
    assert all(parameter.requires_grad for parameter in model.parameters())
    losses = [record.loss for stage in fitted.result_.stages for record in stage.history]
    assert losses[-1] < losses[3]


def test_finetuning_keeps_its_best_epoch():
    fitted = fit(val=opposed(), finetune_epochs=3, keep_best=True, monitor="loss")
    assert [stage.best_epoch for stage in fitted.result_.stages] == [1, 1]


def test_a_warm_start_is_in_every_branch():
    data, made = make(), []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1 if not made else 0.0))
        return made[-1]

    fitted = fit(data=data, warm_epochs=3, optimizer=optimizer)
    assert [(stage.name, stage.epochs) for stage in fitted.result_.stages] == [("warm start", 3), ("dmtg", 4)]
    assert len(made) == 2
    warm = plain_training(
        lambda: mlp(5, (8,))(LAYOUT), data, "joint", 3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    ).network
    for k in range(3):
        for name, value in fitted.net_.branch_module(k).state_dict().items():
            torch.testing.assert_close(value, warm.backbone.state_dict()[name])
        torch.testing.assert_close(fitted.net_.heads.linear.weight[k].T, warm.head.weight)
        torch.testing.assert_close(fitted.net_.heads.linear.bias[k], warm.head.bias)


def test_a_warm_start_sets_the_trunk_too():
    net = BranchedNet(lambda: nn.Linear(6, 4), 3, LAYOUT, 4, trunk=Trunk())
    fitted = fit(net, warm_epochs=2, lr=1e-3)
    assert fitted.result_.stages[0].history[-1].loss > fitted.result_.stages[1].history[0].loss * 0.5
    assert int(fitted.net_.trunk[1].num_batches_tracked) == 2 * 4 + 4 * 4


class Seen(BranchedNet):
    """Reads the sample's number off an extra input column, and keeps what it returned for it in training mode."""

    def forward(self, inputs):
        outputs = super().forward(inputs[:, :5])
        if self.training:
            self.seen = [*getattr(self, "seen", []), (inputs[:, 5].long(), outputs.detach().clone())]
        return outputs


@pytest.mark.parametrize("missing", [False, True])
def test_the_map_holds_the_training_passes_probabilities(missing):
    data, labels = make(missing=missing), [2, 0, 2, 1]
    marked = torch.cat([data.inputs, torch.arange(len(data)).float()[:, None]], dim=1)
    net = Seen(lambda: MLP(5, (8,)), 3, LAYOUT)
    fitted = fit(net, data=(marked, data.targets), assignment=TaskAssignment.fixed(labels, 3), record=True)
    golds, losses, loss = [[] for _ in range(len(data))], torch.zeros(4, 4), MultiTaskLoss(LAYOUT)
    for batch, (ids, outputs) in enumerate(fitted.net_.seen):
        logits = torch.cat([outputs[k][:, LAYOUT.columns(t)] for t, k in zip(LAYOUT, labels, strict=True)], 1)
        loss(logits, data.targets[ids])
        losses[batch // 4] += loss.task_losses * len(ids) / len(data)
        parts = LAYOUT.probabilities(logits.double())
        for row, i in enumerate(ids.tolist()):
            gold = data.targets[i].clamp(min=0).tolist()
            golds[i].append([part[row, y].item() for part, y in zip(parts, gold, strict=True)])
    recorded = torch.tensor([record.task_losses for record in fitted.result_.stages[0].history])
    torch.testing.assert_close(recorded, losses)
    history = torch.tensor(golds, dtype=torch.float64)  # [M, epochs, T]
    assert history.shape == (len(data), 4, 4)
    known, found = data.targets != -100, fitted.data_map_
    torch.testing.assert_close(found.mean.double()[known], history.mean(1)[known], atol=1e-6, rtol=0)
    std = history.std(1, correction=0)[known]
    torch.testing.assert_close(found.std.double()[known], std, atol=1e-6, rtol=0)
    counts = found.count if found.count.ndim == 2 else found.count[:, None].expand(-1, 4)
    assert torch.equal(counts.long(), 4 * known.long())


def test_recording_changes_nothing_else_and_is_not_done_unasked():
    first, second = fit(record=True), fit()
    assert_same(first, second)
    assert second.data_map_ is None
    assert first.data_map_.count.eq(4).all()


@pytest.mark.parametrize("temperature", [0.5, Temperature(4, 0.1), Temperature(2, 1, "cosine")])
@pytest.mark.parametrize("sampling", ["gumbel", "hard", "softmax", "per_sample"])
def test_all_ways_of_sampling_train(sampling, temperature):
    fitted = fit(sampling=sampling, temperature=temperature, eps=0.01, entropy_weight=0.1)
    history = fitted.result_.stages[0].history
    assert history[-1].loss < history[0].loss
    schedule = Temperature.of(temperature)
    assert fitted.result_.temperatures == pytest.approx([schedule.at(e / 4) for e in range(5)])
    start = fitted.plan.make_assignment(LAYOUT, 3, 0).theta
    assert not torch.equal(fitted.assignment_.theta, start)
    assert fitted.assignment_.draws == (0 if sampling == "softmax" else 16)


@pytest.mark.parametrize(("given", "expected"), [("diagonal", [0, 1, 2, 0]), ("random", None), ("fixed", [1, 1, 2, 1])])
def test_fixed_assignments(given, expected):
    fitted = fit(assignment=TaskAssignment.fixed(expected, 3) if given == "fixed" else given, record=True)
    labels = fitted.groups_.labels.tolist()
    assert labels == expected if expected else sorted(labels.count(k) for k in range(3)) == [1, 1, 2]
    np.testing.assert_array_equal(fitted.assignment_history_, np.eye(3)[labels][None].repeat(5, 0))
    assert fitted.result_.moved == (0,) * 5
    assert fitted.assignment_.draws == 0
    unused = set(range(3)) - set(labels)
    assert len(fitted.model_.branches) == 3 - len(unused)
    if given == "random":
        other = [
            tuple(trainer(assignment="random", seed=s).plan.make_assignment(LAYOUT, 3, s).labels()) for s in range(9)
        ]
        assert len({tuple(int(k) for k in labels) for labels in other}) > 1


def test_what_a_given_assignment_has_of_its_own_is_refused():
    given = TaskAssignment(4, 3, sampling="hard")
    trainer(assignment=given, sampling="hard", temperature=1.0, entropy_weight=0.1)
    for name, value in {"sampling": "softmax", "init": "normal", "eps": 0.1}.items():
        with pytest.raises(
            InvalidArgumentError, match=f"^{name} must be left out for .* given, which has its own; got "
        ):
            trainer(assignment=given, **{name: value})


def test_a_fixed_assignment_trains_only_the_chosen_heads():
    net = branched()
    fitted = fit(net, assignment=TaskAssignment.fixed([1, 1, 2, 1], 3))
    before, after = net.heads.linear.weight, fitted.net_.heads.linear.weight
    changed = (before != after).any(1)  # [K, C]
    wanted = torch.zeros(3, LAYOUT.num_logits, dtype=torch.bool)
    for t, k in enumerate([1, 1, 2, 1]):
        wanted[k, LAYOUT.columns(t)] = True
    assert torch.equal(changed, wanted)
    for name, value in fitted.net_.branch_module(0).state_dict().items():
        assert torch.equal(value, net.branch_module(0).state_dict()[name])


REGRESSION = TaskLayout.regression(["x", "y", "z"])
MIXED = TaskLayout(["a", "x", "b"], [1, 1, 3], kinds=["classification", "regression", "classification"])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("layout", [REGRESSION, MIXED], ids=["regression", "mixed"])
def test_regression(layout, missing):
    data = make(layout, missing=missing, rows=200)
    fitted = fit(layout=layout, data=data, val=make(layout, seed=1), record=True, finetune_epochs=2, warm_epochs=1)
    assert fitted.result_.stages[-1].history[-1].loss < fitted.result_.stages[0].history[0].loss
    scores = fitted.evaluate(data)["dmtg"]
    assert scores.tasks["x"]["r2"] > 0.2
    assert fitted.data_map_.count.float().max() == 4
    assert all(np.isfinite(record.val_score) for record in fitted.result_.stages[1].history)


def test_losses():
    data = make(REGRESSION, rows=100)

    def slow(outputs, targets):
        return (outputs[:, 0] - targets).abs().mean()

    named, called = (fit(layout=REGRESSION, data=data, losses=dict.fromkeys("xyz", loss)) for loss in ("l1", slow))
    for one, other in zip(named.result_.stages[0].history, called.result_.stages[0].history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.task_losses == pytest.approx(other.task_losses, rel=1e-4)
    squares = fit(layout=REGRESSION, data=data)
    assert squares.result_.stages[0].history[0].loss != pytest.approx(named.result_.stages[0].history[0].loss, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="must not be a function for task 'x'"):
        fit(layout=REGRESSION, losses={"x": slow}, sampling="per_sample")
    assert json.dumps(called.result_.to_dict(), allow_nan=False)


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


def test_theta_rests_for_its_share_of_the_steps():
    fitted = fit(assignment_warmup=0.5)
    history = fitted.assignment_history_
    assert np.array_equal(history[0], history[2])
    assert not np.array_equal(history[2], history[3])
    assert not np.array_equal(*fit(assignment_warmup=0).assignment_history_[:2])


def test_the_entropy_term_decides_and_stands_in_the_loss():
    """Where the branches cannot learn, theta follows the entropy alone."""
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), "assignment": leaning(0.1)}
    one, other = (fit(**still, drop_branches=False, entropy_weight=weight).result_ for weight in (0.0, 2.0))
    assert other.entropies[-1] < other.entropies[0] == one.entropies[0]
    gap = other.stages[0].history[0].loss - one.stages[0].history[0].loss
    assert 2 * other.entropies[1] - 1e-3 < gap < 2 * other.entropies[0] + 1e-3


@pytest.mark.parametrize("stage", ["warm start", "dmtg", "fine-tuning"])
def test_interrupts_leave_nothing_half_set(stage):
    def stop(name, record):
        if name == stage:
            raise KeyboardInterrupt

    fitted = fit(warm_epochs=1, finetune_epochs=1)
    fitted.config = trainer(on_epoch_end=stop).config
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(make())
    assert torch.equal(state, torch.get_rng_state())
    for name in FITTED:
        assert not hasattr(fitted, name)
    assert repr(fitted) == f"DMTGTrainer(4 tasks, epochs={fitted.plan.epochs}, seed=0; not fitted)"
    for call in (lambda: fitted.predict_proba(make()), lambda: fitted.evaluate(make()), fitted.prune):
        with pytest.raises(NotFittedError, match=r"is set by fit: call DMTGTrainer\.fit first"):
            call()


def test_non_finite_losses_are_named():
    data = make()
    data.inputs[7] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"stage 'dmtg', epoch 1: the loss of 'a', 'b', 'c', 'd' became NaN"):
        fit(data=data)
    with pytest.raises(NonFiniteLossError, match=r"stage 'warm start', epoch 1"):
        fit(data=data, warm_epochs=1)
    with pytest.raises(NonFiniteLossError, match="stage 'dmtg', epoch 1"):
        fit(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e38))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_groups": 0}, InvalidArgumentError, "num_groups must be at least 1; got 0"),
        ({"num_groups": "auto"}, InvalidTypeError, "num_groups must be an integer; got 'auto'"),
        ({"epochs": 0}, InvalidArgumentError, "epochs must be at least 1; got 0"),
        ({"warm_epochs": -1}, InvalidArgumentError, "warm_epochs must be at least 0; got -1"),
        ({"finetune_epochs": 1.0}, InvalidTypeError, "finetune_epochs must be an integer"),
        ({"assignment_lr": 0}, InvalidArgumentError, "assignment_lr must be finite and above 0; got 0"),
        ({"assignment_lr": "slow"}, InvalidTypeError, "assignment_lr must be a number"),
        ({"assignment_warmup": 1}, InvalidArgumentError, "assignment_warmup must be a share below 1; got 1"),
        ({"entropy_weight": -1}, InvalidArgumentError, "entropy_weight must be finite and at least 0; got -1"),
        ({"entropy_weight": float("nan")}, InvalidArgumentError, "entropy_weight must be finite"),
        ({"eps": -1}, InvalidArgumentError, "eps must be finite and at least 0; got -1"),
        ({"freeze_trunk": 1}, InvalidTypeError, "freeze_trunk must be True or False; got 1"),
        ({"drop_branches": None}, InvalidTypeError, "drop_branches must be True or False"),
        ({"record": "yes"}, InvalidTypeError, "record must be True or False"),
        ({"sampling": "soft"}, InvalidArgumentError, "sampling must be one of 'gumbel'.*got 'soft'"),
        ({"sampling": "fixed"}, InvalidArgumentError, "sampling 'fixed' must come with assignment 'diagonal'"),
        ({"init": "zeros"}, InvalidArgumentError, "init must be one of 'ones'.*got 'zeros'"),
        ({"assignment": "best"}, InvalidArgumentError, "assignment must be one of 'learned'.*got 'best'"),
        ({"assignment": [0, 1]}, InvalidArgumentError, r"assignment must be one of .*got \[0, 1\]"),
        ({"assignment": TaskAssignment(3, 3)}, InvalidArgumentError, "assignment must be of 4 tasks; got one of 3"),
        ({"temperature": 0}, InvalidArgumentError, "temperature's start must lie in"),
        ({"temperature": "hot"}, InvalidTypeError, "temperature's start must be a number"),
        ({"losses": {"a": "mse"}}, InvalidArgumentError, "losses must be one of 'cross_entropy'"),
        ({"losses": {"e": "mse"}}, InvalidArgumentError, "'e'"),
        ({"lr": -1}, InvalidArgumentError, "lr must be positive"),
        ({"seed": -1}, InvalidArgumentError, "seed must be at least 0"),
        ({"monitor": "luck"}, InvalidArgumentError, "monitor must be one of"),
        ({"layout": ["a"]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
        ({"net": nn.Linear(5, 4)}, InvalidTypeError, "net must be a BranchedNet, or a factory .*; got Linear"),
        ({"net": "mlp"}, InvalidTypeError, "net must be a BranchedNet, or a factory .*; got str"),
        ({"net": branched(LAYOUT.select([0]))}, InvalidArgumentError, "net must have the layout"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        trainer(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"net": lambda layout: 3}, InvalidTypeError, "net must make a BranchedNet or a MultiHeadNet; it made a int"),
        ({"net": lambda layout: nn.Linear(5, 7)}, InvalidTypeError, "it made a Linear"),
        ({"net": lambda layout: branched(LAYOUT.select([0]))}, InvalidArgumentError, "theirs differ"),
        ({"net": lambda layout: mlp(5)(LAYOUT.select([0]))}, InvalidArgumentError, "theirs differ"),
        ({"assignment": TaskAssignment(4, 2)}, InvalidArgumentError, "assignment must be to 3 branches; got one to 2"),
        ({"keep_best": True}, InvalidArgumentError, "keep_best=True needs a validation set"),
        ({"monitor": "r2"}, InvalidArgumentError, "monitor must suit the tasks"),
        ({"data": []}, InvalidArgumentError, "train must hold at least one sample"),
        ({"data": make(LAYOUT.select([0]))}, InvalidArgumentError, r"targets \[samples, 4\]"),
        ({"data": (torch.zeros(4, 5), torch.full((4, 4), 9))}, InvalidArgumentError, "9"),
    ],
)
def test_refused_by_fit(options, error, message):
    fitted = trainer(**{name: value for name, value in options.items() if name != "data"})
    with pytest.raises(error, match=message):
        fitted.fit(options.get("data", make()))
    assert not hasattr(fitted, "net_")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fitted.nonsense


def small_heads(features, classes):
    return nn.Sequential(nn.Linear(features, 3), nn.Tanh(), nn.Linear(3, classes))


def test_heads_that_are_not_linear():
    fitted = fit(branched(head={"b": small_heads}), val=make(seed=1), finetune_epochs=1)
    assert fitted.predict_proba(make()).shape == (61, 7)
    assert fitted.result_.stages[0].history[-1].val_score > 0
    with pytest.raises(InvalidArgumentError, match="record must be False where heads are not linear"):
        fit(branched(head={"b": small_heads}), record=True)
    with pytest.raises(InvalidArgumentError, match="warm_epochs must be 0 where heads are not linear"):
        fit(branched(head=small_heads), warm_epochs=1)


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    fit(progress=True, warm_epochs=1, finetune_epochs=2)
    assert "7/7 epochs" in capsys.readouterr().err


def test_an_epoch_without_any_choice_is_not_the_best():
    fitted = fit(val=opposed(), keep_best=True, monitor="loss", assignment_warmup=0.5)
    scores = [record.val_score for record in fitted.result_.stages[0].history]
    assert int(np.argmax(scores)) == 0
    assert fitted.result_.stages[0].best_epoch == 3


def test_the_monitored_loss_is_the_trained_one():
    fitted = fit(layout=REGRESSION, losses=dict.fromkeys("xyz", "l1"), val=make(REGRESSION), monitor="loss")
    scores = torch.as_tensor(fitted.predict_proba(make(REGRESSION)))
    targets = make(REGRESSION).targets
    expected = -(scores - targets).abs().mean(0)
    names = list(REGRESSION)
    found = fitted.result_.stages[0].history[-1].val_task_scores
    for name in "xyz":
        assert found[names.index(name)] == pytest.approx(expected[names.index(name)].item(), rel=1e-4)


def test_a_warm_start_has_the_losses_that_were_given():
    fitted = fit(layout=REGRESSION, losses=dict.fromkeys("xyz", "l1"), warm_epochs=1, epochs=1, lr=1e-9)
    warm, grouped = fitted.result_.stages  # the same network in both
    assert warm.history[0].task_losses == pytest.approx(grouped.history[0].task_losses, rel=1e-4)


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


def test_an_assignment_goes_on_from_its_state_after_a_drop():
    first = TaskAssignment(4, 3, seed=1)
    first.sample()
    first.drop([0, 2])
    second = TaskAssignment(4, 2, seed=1)
    second.load_state_dict(first.state_dict())
    assert second.branch_ids == (0, 2)
    assert torch.equal(first.sample(), second.sample())
    with pytest.raises(InvalidArgumentError, match="state must be of 3 branches, as here; got one of 2"):
        TaskAssignment(4, 3).set_extra_state(first.get_extra_state())
