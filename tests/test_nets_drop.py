"""Branches dropped while training: what is left goes on as if they had never been there."""

import copy

import pytest
import torch
from _branched import LAYOUT, conv_branches, mlp_branches, net_of, weighted_sum
from _settings import new_seed
from torch import nn

from pymtg.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)


def trained(net, optimizer, batches, weights):
    """One step per batch on a loss that looks at the first two branches only, as where Z is zero for the third."""
    for x in batches:
        optimizer.zero_grad()
        outputs = net(x)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        loss = (logits[:2] * weights).square().sum()
        if not isinstance(outputs, torch.Tensor):
            loss = loss + sum(o[:2].square().sum() for o in outputs.others.values())
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "fused adam": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("head", [None, {"b": nn.Linear}])
@pytest.mark.parametrize("branches", [mlp_branches, conv_branches])
def test_as_if_it_had_never_been_there(batched, optimizer, head, branches):
    shape = (6,) if branches is mlp_branches else (2, 8, 8)
    two = branches(2)
    three = net_of([*copy.deepcopy(two), *branches(1)], head=head, batched=batched)
    without = net_of(two, head=head, batched=batched)
    grown = copy.deepcopy(three)
    grown.drop_branches([0, 1])
    without.load_state_dict(grown.state_dict())
    ours, theirs = (OPTIMIZERS[optimizer](net.parameters()) for net in (three, without))
    batches = torch.randn(6, 9, *shape).double()
    weights = torch.randn(2, 9, without.heads.linear.bias.shape[1]).double()
    trained(three, ours, batches[:3], weights)
    trained(without, theirs, batches[:3], weights)
    three.drop_branches([0, 1], ours)
    assert three.branch_ids == (0, 1)
    trained(three, ours, batches[3:], weights)
    trained(without, theirs, batches[3:], weights)
    torch.testing.assert_close(three.state_dict(), without.state_dict())
    held = [p for group in ours.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in three.parameters()}
    assert set(ours.state) <= set(held)
    for parameter, state in ours.state.items():
        assert all(value.shape in (parameter.shape, ()) for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("batched", [True, False])
def test_order_numbers_gradients_and_frozen_weights(batched):
    branches = mlp_branches(4)
    for branch in branches:
        branch.layers[0].weight.requires_grad_(False)
    net = net_of(branches, trunk=nn.Linear(5, 6), batched=batched)
    x = torch.randn(3, 5).double()
    weighted_sum(net(x)).backward()
    logits, gradient = net(x), net.heads.linear.weight.grad.clone()
    net.drop_branches([3, 1])
    assert net.branch_ids == (3, 1)
    torch.testing.assert_close(net(x), logits[[3, 1]])
    torch.testing.assert_close(net.heads.linear.weight.grad, gradient[[3, 1]])
    assert not net.branch_module(0).layers[0].weight.requires_grad
    net.drop_branches([1])
    assert net.branch_ids == (1,)
    torch.testing.assert_close(net(x), logits[[1]])
    torch.testing.assert_close(net.prune([0, 0, 0, 0])(x), logits[1])
    assert net.prune([0, 0, 0, 0]).branch_ids == (1,)


@pytest.mark.parametrize("batched", [True, False])
def test_scaling_and_aggregation_go_by_the_branches_that_are_left(batched):
    net = net_of(mlp_branches(3), trunk=nn.Linear(5, 6), batched=batched, aggregator=lambda m: m.sum(0))
    net.drop_branches([2, 0])
    net(torch.randn(4, 5).double()).sum().backward()
    assert net.trunk.weight.grad.any()


def test_groups_of_an_optimizer_keep_their_settings():
    net = net_of(mlp_branches(3), trunk=nn.Linear(5, 6), batched=False)
    groups = [
        {"params": list(net.trunk.parameters()), "lr": 0.1},
        {"params": list(net.branches.parameters())},
        {"params": list(net.heads.parameters()), "lr": 0.3},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.2)
    net.drop_branches([1], optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4, 2]
    before = [parameter.detach().clone() for parameter in net.heads.linear.parameters()]
    net(torch.randn(4, 5).double()).sum().backward()
    for parameter in net.heads.linear.parameters():
        parameter.grad.add_(1)  # that of the weights is zero where ReLU has left no feature
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, net.heads.linear.parameters(), strict=True))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], r"at least one branch, each once; got \[\]"),
        ([0, 0], r"each once; got \[0, 0\]"),
        ([3], "keep must name branches by position, below 3; got 3"),
        ([-1], "got -1"),
    ],
)
def test_bad_positions_change_nothing(keep, message):
    net = net_of(mlp_branches(3))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidArgumentError, match=message):
        net.drop_branches(keep)
    assert net.num_branches == 3
    torch.testing.assert_close(net.state_dict(), before)


def test_adafactors_factors_are_cut():
    two = mlp_branches(2)
    three, without = (net_of(branches, batched=True) for branches in ([*copy.deepcopy(two), *mlp_branches(1)], two))
    grown = copy.deepcopy(three)
    grown.drop_branches([0, 1])
    without.load_state_dict(grown.state_dict())
    ours, theirs = (torch.optim.Adafactor(net.parameters(), lr=1e-2) for net in (three, without))
    batches, weights = torch.randn(2, 9, 6).double(), torch.randn(2, 9, LAYOUT.num_logits).double()
    trained(three, ours, batches[:1], weights)
    trained(without, theirs, batches[:1], weights)
    three.drop_branches([0, 1], ours)
    assert set(ours.state) == set(three.parameters())
    for mine, other in zip(three.parameters(), without.parameters(), strict=True):
        got, expected = ours.state[mine], dict(theirs.state[other])
        if mine.ndim == 2:  # one column factor for all branches: the mean, which the third was part of with zeros
            expected["col_var"] = expected["col_var"] * 2 / 3
        torch.testing.assert_close(got, expected)
    trained(three, ours, batches[1:], weights)
    assert all(torch.isfinite(p).all() for p in three.parameters())


@pytest.mark.parametrize(
    ("state", "got"),
    [(torch.zeros(2, 5), r"\[2, 5\]"), (torch.zeros(12), r"\[12\]"), ([torch.zeros(3)], "list"), ({}, "dict")],
    ids=["matrix", "flat", "list", "dict"],
)
@pytest.mark.parametrize("place", ["branches", "heads"])
def test_state_that_cannot_be_told_apart_changes_nothing(place, state, got):
    net = net_of(mlp_branches(3), batched=True)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 6).double()).sum().backward()
    optimizer.step()
    *_, last = getattr(net, place).parameters()
    optimizer.state[last]["basis"] = state
    weights, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    parameters = list(net.parameters())
    with pytest.raises(InvalidArgumentError, match=rf"optimizer must hold state .* its 'basis' of a .* is {got}"):
        net.drop_branches([0, 2], optimizer)
    assert net.num_branches == 3
    assert all(p is q for p, q in zip(net.parameters(), parameters, strict=True))
    torch.testing.assert_close(net.state_dict(), weights)
    assert str(optimizer.state_dict()) == str(moments)
