"""DMTGTrainer: the stages, branches that are dropped on the way, the best epoch, the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _dmtg import LAYOUT, assert_same, branched, fit, leaning, make, opposed, plain_training
from torch import nn

from pymtg import MultiTaskLoss
from pymtg.errors import InvalidArgumentError
from pymtg.nets import MLP, BranchedNet, TaskAssignment, mlp


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


def test_an_epoch_without_any_choice_is_not_the_best():
    fitted = fit(val=opposed(), keep_best=True, monitor="loss", assignment_warmup=0.5)
    scores = [record.val_score for record in fitted.result_.stages[0].history]
    assert int(np.argmax(scores)) == 0
    assert fitted.result_.stages[0].best_epoch == 3


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
