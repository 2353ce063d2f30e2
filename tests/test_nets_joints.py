"""What gradients become where branches join the trunk and heads join a branch, against the same done by hand."""

import copy
import math

import pytest
import torch
from _branched import LAYOUT, conv_branches, mlp_branches, net_of
from _settings import new_seed
from torch import nn
from torchjd.aggregation import UPGrad

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, BranchedNet


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)


def trunked(batched=True, **options):
    return net_of(mlp_branches(3), trunk=nn.Linear(5, 6), batched=batched, **options)


def gradients(net, x, weights):
    net.zero_grad()
    outputs = net(x)
    (outputs * weights).sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("batched", [True, False])
def test_scaled_by_the_roots_of_k_and_t(batched):
    plain = trunked(batched)
    scaled = copy.deepcopy(plain)
    scaled.gradient_scaling = True
    scaled.heads.factor = trunked(gradient_scaling=True).heads.factor
    x, weights = torch.randn(7, 5).double(), torch.randn(3, 7, LAYOUT.num_logits).double()
    assert torch.equal(plain(x), scaled(x))
    before, after = gradients(plain, x, weights), gradients(scaled, x, weights)
    for name, gradient in before.items():
        factor = {"trunk": 1 / math.sqrt(3 * 4), "branches": 1 / math.sqrt(4), "heads": 1.0}[name.split(".")[0]]
        torch.testing.assert_close(after[name], gradient * factor)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("branches", [mlp_branches, conv_branches])
def test_the_sum_as_an_aggregator_is_none_at_all(batched, branches):
    modules, images = branches(3), branches is conv_branches
    trunk = (nn.Conv2d(1, 2, 1) if images else nn.Linear(5, 6)).double()
    x = (torch.randn(4, 1, 5, 4) if images else torch.randn(7, 5)).double()
    weights = torch.randn(3, len(x), LAYOUT.num_logits).double()
    nets = [
        net_of(copy.deepcopy(modules), trunk=copy.deepcopy(trunk), batched=batched, aggregator=aggregator)
        for aggregator in (None, lambda m: m.sum(0))
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    expected, got = (gradients(net, x, weights) for net in nets)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient)
    torch.testing.assert_close(nets[0](x), nets[1](x))


def by_hand(net, x, weights, aggregator):
    """The gradients of the trunk's output and of every branch's features, aggregated in plain steps."""
    shared = net.trunk(x).detach()
    rows = []
    for k in range(net.num_branches):
        own = shared.clone().requires_grad_()
        features = net.branch_module(k).train(net.training)(own)
        leaf = features.detach().requires_grad_()
        per_task = []
        for name in LAYOUT:
            logits = net.heads.linear.module(k, [name])(leaf)
            (gradient,) = torch.autograd.grad((logits * weights[k][:, LAYOUT.columns(name)]).sum(), leaf)
            per_task.append(gradient.flatten())
        joined = aggregator(torch.stack(per_task)).view_as(features)
        rows.append(torch.autograd.grad(features, own, joined)[0].flatten())
    return aggregator(torch.stack(rows)).view_as(shared)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("fix", [UPGrad, lambda: lambda m: (m * torch.arange(1, len(m) + 1)[:, None]).sum(0)])
def test_an_aggregator_at_both_joints(batched, fix):
    net = trunked(batched, aggregator=fix())
    x, weights = torch.randn(7, 5).double(), torch.randn(3, 7, LAYOUT.num_logits).double()
    expected = by_hand(net, x, weights, fix())
    got = gradients(net, x, weights)
    torch.testing.assert_close(got["trunk.weight"], expected.T @ x)
    torch.testing.assert_close(got["trunk.bias"], expected.sum(0))
    plain = trunked(batched)
    plain.load_state_dict(net.state_dict())
    summed = gradients(plain, x, weights)
    assert not torch.allclose(got["trunk.weight"], summed["trunk.weight"])
    for name in ("heads.linear.weight", "heads.linear.bias"):
        torch.testing.assert_close(got[name], summed[name])


def test_an_aggregator_sees_one_row_a_task_whatever_its_head():
    seen = []

    def mean(matrix):
        seen.append(tuple(matrix.shape))
        return matrix.mean(0)

    head = {"b": nn.Linear, "d": nn.Linear}
    net = net_of(mlp_branches(3), head=head, aggregator=mean)
    plain = net_of(mlp_branches(3), head=head)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(7, 6).double()
    for each in (net, plain):
        outputs = each(x)
        (outputs.logits.square().sum() + sum(o.square().sum() for o in outputs.others.values())).backward()
    assert seen == [(4, 7 * 4)] * 3
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad / 4 if name.startswith("branches") else q.grad)


def test_half_precision_reaches_the_aggregator_in_float32():
    dtypes = []

    def first(matrix):
        dtypes.append(matrix.dtype)
        return matrix[0]

    net = BranchedNet(MLP(6, (4,)), 2, LAYOUT, trunk=nn.Linear(5, 6), aggregator=first).bfloat16()
    net(torch.randn(3, 5).bfloat16()).sum().backward()
    assert set(dtypes) == {torch.float32}
    assert net.trunk.weight.grad.dtype == torch.bfloat16


def test_empty_batches_and_single_rows_and_columns():
    for branches, layout, batch in ((1, TaskLayout.binary(["only"]), 3), (2, LAYOUT, 0), (1, LAYOUT, 1)):
        net = net_of(mlp_branches(branches), layout, trunk=nn.Linear(5, 6), aggregator=UPGrad())
        net(torch.randn(batch, 5).double()).sum().backward()
        assert torch.isfinite(net.trunk.weight.grad).all()


def test_a_branch_without_gradient_does_no_harm():
    net = trunked(aggregator=UPGrad())
    net(torch.randn(64, 5).double())[0].sum().backward()  # so many rows that some unit of a branch is at work
    assert net.trunk.weight.grad.any()
    assert torch.isfinite(net.trunk.weight.grad).all()
    assert not net.heads.linear.weight.grad[1:].any()


@pytest.mark.parametrize("trunk", [None, nn.Linear(5, 6)], ids=["no trunk", "trunk"])
def test_an_aggregator_of_another_shape_is_named(trunk):
    x = torch.randn(7, 6 if trunk is None else 5).double()
    message = r"aggregator must return \[28\], one gradient of a matrix \[4, 28\]; got "
    for aggregator, got in (
        (lambda m: m, r"\[4, 28\]"),
        (lambda m: m.sum(1), r"\[4\]"),
        (lambda m: m.sum(), r"\[\]"),
        (lambda m: m.sum(0, keepdim=True), r"\[1, 28\]"),
    ):
        net = net_of(mlp_branches(3), trunk=trunk, aggregator=aggregator)
        with pytest.raises(InvalidArgumentError, match=message + got):
            net(x).sum().backward()
    net = net_of(mlp_branches(3), trunk=trunk, aggregator=lambda m: m.sum(0).tolist())
    with pytest.raises(InvalidTypeError, match="aggregator must return a tensor; got list"):
        net(x).sum().backward()
