"""Branches and heads that start from trained networks."""

import copy

import pytest
import torch
from _branched import LAYOUT, unsettled
from _settings import new_seed
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, BranchedNet, ConvNet, MultiHeadNet, mlp

BATCHED = pytest.mark.parametrize("batched", [True, False])


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)


@BATCHED
def test_from_one_network_into_every_branch(batched):
    trained = MultiHeadNet(LAYOUT, unsettled(ConvNet(2, (3, 4)))).double().eval()
    net = BranchedNet(lambda: ConvNet(2, (3, 4)), 3, LAYOUT, batched=batched).double().eval()
    net.load_multihead(trained)
    x = torch.randn(5, 2, 8, 8).double()
    torch.testing.assert_close(net(x), trained(x).expand(3, -1, -1))
    torch.testing.assert_close(net.branch_module(2).state_dict(), trained.backbone.state_dict())


@BATCHED
def test_from_one_network_per_branch(batched):
    trained = [mlp(6, (8, 4))(LAYOUT) for _ in range(3)]
    net = BranchedNet(lambda: MLP(6, (8, 4)), 3, LAYOUT, batched=batched)
    net.load_multihead(trained)
    x = torch.randn(5, 6)
    torch.testing.assert_close(net(x), torch.stack([each(x) for each in trained]))
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert trained[0].backbone.layers[0].weight.any()


@BATCHED
def test_single_task_networks_fill_the_heads_they_have(batched):
    names = ["c", "a", "d"]
    trained = [mlp(6, (4,))(LAYOUT.select([name])) for name in names]
    net = BranchedNet(lambda: MLP(6, (4,)), 3, LAYOUT, batched=batched, head={"b": nn.Linear})
    before = net.heads.linear.weight.detach().clone()
    net.load_multihead(trained)
    x = torch.randn(5, 6)
    linear = net.heads.linear.layout
    for k, name in enumerate(names):
        torch.testing.assert_close(net(x).logits[k][:, linear.columns(name)], trained[k](x))
        others = [c for c in range(4) if c not in range(4)[linear.columns(name)]]
        assert torch.equal(net.heads.linear.weight[k][:, others], before[k][:, others])


@BATCHED
def test_with_a_trunk(batched):
    trunk, branch = nn.Linear(5, 6), MLP(6, (4,))
    whole = MultiHeadNet(LAYOUT, nn.Sequential(copy.deepcopy(trunk), copy.deepcopy(branch)), 4)
    net = BranchedNet(lambda: MLP(6, (4,)), 2, LAYOUT, trunk=nn.Linear(5, 6), batched=batched)
    start = copy.deepcopy(net.trunk.state_dict())
    net.load_multihead([whole, whole])
    torch.testing.assert_close(net.trunk.state_dict(), start)
    net.load_multihead(whole)
    x = torch.randn(3, 5)
    torch.testing.assert_close(net(x), whole(x).expand(2, -1, -1))
    alone = MultiHeadNet(LAYOUT, MLP(6, (4,)))
    net.load_multihead(alone)
    torch.testing.assert_close(net(x), alone(trunk(x)).expand(2, -1, -1))


def test_what_does_not_fit_changes_nothing():
    net = BranchedNet(lambda: MLP(6, (8, 4)), 2, LAYOUT)
    before = copy.deepcopy(net.state_dict())
    good = mlp(6, (8, 4))
    other = TaskLayout(["a", "b"], [1, 2])
    for nets, error, message in (
        ("net", InvalidTypeError, "sequence of them; got str"),
        (3, InvalidTypeError, "nets must be a MultiHeadNet or a sequence of them; got int"),
        (MLP(6, (8, 4)), InvalidTypeError, "nets must be of type MultiHeadNet; got MLP"),
        ([good(LAYOUT)], InvalidArgumentError, "one per branch, 2; got 1"),
        ([good(LAYOUT), mlp(6, (7, 4))(LAYOUT)], InvalidArgumentError, "that of network 1 has other weights"),
        ([good(LAYOUT), mlp(6, (8, 5))(LAYOUT)], InvalidArgumentError, "heads on 4 features; got 5"),
        (good(TaskLayout.binary(["z"])), InvalidArgumentError, "no task is named 'z'"),
        (good(other), InvalidArgumentError, "nets must have 3 classes for task 'b', as here; got 2"),
    ):
        with pytest.raises(error, match=message):
            net.load_multihead(nets)
        torch.testing.assert_close(net.state_dict(), before)
