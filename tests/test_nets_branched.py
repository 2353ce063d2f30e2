"""BranchedNet: every head of every branch on its branch's features; what it is made of; what it refuses."""

import copy
import pickle

import numpy as np
import pytest
import torch
from _branched import LAYOUT, conv_branches, mlp_branches, net_of
from _settings import new_seed
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, BranchedNet, ConvNet, HeadOutputs, count_parameters, mlp

ONE = TaskLayout.binary(["only"])


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("branches", [1, 3, 7])
@pytest.mark.parametrize("layout", [ONE, LAYOUT])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_logits_are_every_branchs_heads_on_its_features(batched, branches, layout, batch):
    modules = mlp_branches(branches)
    net = net_of(modules, layout, batched=batched)
    x = torch.randn(batch, 6).double()
    logits = net(x)
    assert logits.shape == (branches, batch, layout.num_logits)
    assert net.batched == batched
    for k, module in enumerate(modules):
        for name in layout:
            columns = layout.columns(name)
            expected = module(x) @ net.heads.linear.weight[k][:, columns] + net.heads.linear.bias[k, columns]
            torch.testing.assert_close(logits[k][:, columns], expected)
            torch.testing.assert_close(net.heads.linear.module(k, [name])(module(x)), expected)


def test_batched_and_one_by_one_are_one_network():
    modules = conv_branches(3)
    trunk = nn.Conv2d(1, 2, 1).double()
    nets = [
        net_of(copy.deepcopy(modules), trunk=copy.deepcopy(trunk), batched=b, gradient_scaling=True)
        for b in (True, False)
    ]
    nets[1].heads.load_state_dict(nets[0].heads.state_dict())
    x, weights = torch.randn(4, 1, 8, 8).double(), torch.randn(3, 4, LAYOUT.num_logits).double()
    for net in nets:
        (net(x) * weights).sum().backward()
    torch.testing.assert_close(nets[0](x), nets[1](x))
    for mine, theirs in ((nets[0].trunk, nets[1].trunk), (nets[0].heads, nets[1].heads)):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_linear_heads_start_at_zero():
    net = BranchedNet(lambda: nn.Flatten(), 3, LAYOUT, 16)
    assert not net(torch.randn(5, 16)).any()
    assert not net.heads.linear.weight.any()


def test_a_module_is_copied_with_its_weights_and_a_factory_called():
    module = MLP(6, (4,))
    copied = BranchedNet(module, 3, LAYOUT)
    for k in range(3):
        torch.testing.assert_close(copied.branch_module(k).state_dict(), module.state_dict())
    with torch.no_grad():
        next(copied.branches.parameters()).zero_()
    assert module.layers[0].weight.any()
    fresh = BranchedNet(lambda: MLP(6, (4,)), 2, LAYOUT)
    assert not torch.equal(fresh.branch_module(0).layers[0].weight, fresh.branch_module(1).layers[0].weight)
    given = [MLP(6, (4,)), MLP(6, (4,))]
    assert list(BranchedNet(given, 2, LAYOUT, batched=False).branches.each) == given
    assert list(BranchedNet(nn.ModuleList(given), 2, LAYOUT, batched=False).branches.each) == given


@pytest.mark.parametrize("batched", [True, False])
def test_from_factory_is_k_networks_side_by_side(batched, seed):
    net = BranchedNet.from_factory(mlp(6, (8, 4)), LAYOUT, 3, batched=batched)
    torch.manual_seed(seed)
    plain = [mlp(6, (8, 4))(LAYOUT) for _ in range(3)]
    x = torch.randn(5, 6)
    assert not net(x).any()
    for k, each in enumerate(plain):
        torch.testing.assert_close(net.branch_module(k).state_dict(), each.backbone.state_dict())
    net.load_multihead(plain)
    torch.testing.assert_close(net(x), torch.stack([each(x) for each in plain]))
    assert count_parameters(net) == sum(count_parameters(each) for each in plain)


@pytest.mark.parametrize("batched", [True, False])
def test_no_parameter_stands_twice_and_all_move_together(batched):
    net = BranchedNet(lambda: ConvNet(1, (3, 4)), 2, LAYOUT, trunk=nn.Conv2d(2, 1, 1), batched=batched)
    listed = [p for _, p in net.named_parameters(remove_duplicate=False)]
    assert len(listed) == len(set(listed)) == len(list(net.parameters()))
    net.to(torch.bfloat16)
    assert net(torch.randn(3, 2, 8, 8).bfloat16()).dtype == torch.bfloat16
    net.to(memory_format=torch.channels_last)
    net.to(torch.float64).eval()
    x = torch.randn(3, 2, 8, 8).double()
    assert torch.equal(net(x), net(x))
    assert not any(part.training for part in net.modules())
    assert not any(part.training for part in net.branch_module(0).modules())
    assert {p.dtype for p in net.branch_module(1).parameters()} == {torch.float64}


@pytest.mark.parametrize("batched", [True, False])
def test_copies_pickles_and_state_dicts(batched):
    def made():
        return BranchedNet(ConvNet(1, (3, 4)), 2, LAYOUT, batched=batched).eval()

    net, x = made(), torch.randn(3, 1, 8, 8)
    again = made()
    again.load_state_dict(net.state_dict())
    for other in (again, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x), net(x))


@pytest.mark.parametrize("batched", [True, False])
def test_batch_norm_of_one_row_is_refused_by_torch(batched):
    net = BranchedNet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 2, LAYOUT, 4, batched=batched)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.zeros(1, 3))
    assert net.eval()(torch.zeros(1, 3)).shape == (2, 1, LAYOUT.num_logits)


def dense(features, classes):
    return nn.Sequential(nn.Conv2d(features, 5, 1), nn.ReLU(), nn.Conv2d(5, classes, 1))


def pooled(features, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


@pytest.mark.parametrize("batched", [True, False])
def test_heads_of_the_users_own_on_dense_maps(batched):
    calls = []

    def counted(features, classes):
        calls.append((features, classes))
        return dense(features, classes)

    head = {"d": pooled, "a": counted, "b": counted, "c": pooled}
    net = BranchedNet(nn.Conv2d(2, 4, 3, padding=1), 3, LAYOUT, 4, head=head, batched=batched)
    assert calls == [(4, 1), (4, 3)] * 3
    outputs = net(torch.randn(5, 2, 6, 6))
    assert isinstance(outputs, HeadOutputs)
    assert outputs.logits is None
    assert list(outputs.others) == list(LAYOUT)
    assert [tuple(o.shape) for o in outputs.others.values()] == [(3, 5, 1, 6, 6), (3, 5, 3, 6, 6), (3, 5, 2), (3, 5, 1)]


@pytest.mark.parametrize("batched", [True, False])
def test_linear_heads_and_others_side_by_side(batched):
    net = net_of(mlp_branches(3), head={"c": lambda f, c: nn.Linear(f, c)}, batched=batched)
    x = torch.randn(5, 6).double()
    outputs = net(x)
    assert outputs.logits.shape == (3, 5, 5)
    for k in range(3):
        features = net.branch_module(k)(x)
        torch.testing.assert_close(outputs.others["c"][k], net.heads.head(k, "c")(features))
        torch.testing.assert_close(outputs.logits[k], net.heads.linear.module(k, ["a", "b", "d"])(features))
    everyone = BranchedNet(MLP(6, (4,)), 2, LAYOUT, head=lambda f, c: nn.Linear(f, c, bias=False))(torch.randn(1, 6))
    assert everyone.logits is None


@pytest.mark.parametrize("head", [None, {"c": nn.Linear, "a": nn.Linear}, nn.Linear])
@pytest.mark.parametrize("labels", [[0, 2, 1, 2], [1, 1, 1, 1], torch.tensor([2, 0, 0, 0])])
def test_the_chosen_heads(head, labels):
    net = net_of(mlp_branches(3), head=head)
    x = torch.randn(5, 6).double()
    outputs, chosen = net(x), net.forward_chosen(x, labels)
    assert chosen.shape == (5, LAYOUT.num_logits)
    for t, (name, got) in enumerate(zip(LAYOUT, LAYOUT.split(chosen), strict=True)):
        if isinstance(outputs, torch.Tensor):
            expected = outputs[labels[t]][:, LAYOUT.columns(name)]
        elif name in outputs.others:
            expected = outputs.others[name][labels[t]]
        else:
            linear = net.heads.linear.layout
            expected = outputs.logits[labels[t]][:, linear.columns(name)]
        torch.testing.assert_close(got, expected)


def raises(error, message, *args, **options):
    with pytest.raises(error, match=message):
        BranchedNet(*args, **options)


def test_what_it_refuses_to_be_made_of():
    ok, same = lambda: MLP(6, (4,)), MLP(6, (4,))
    bad = InvalidArgumentError
    raises(InvalidTypeError, "branch must be a module, a factory .* got int", 3, 2, LAYOUT)
    raises(InvalidTypeError, "branch must be a module, .* got str", "mlp", 2, LAYOUT)
    raises(InvalidTypeError, "branch 0 must be a torch.nn.Module; got int", lambda: 3, 2, LAYOUT)
    raises(bad, "branch must hold num_branches = 3 modules; got 2", [ok(), ok()], 3, LAYOUT)
    raises(bad, "branch 1 must be a module of its own", [same, same], 2, LAYOUT)
    raises(bad, "branch 1 must be a module of its own", lambda: same, 2, LAYOUT)
    raises(bad, "num_branches must be at least 1", ok, 0, LAYOUT)
    raises(InvalidTypeError, "num_branches must be an integer", ok, 2.0, LAYOUT)
    raises(InvalidTypeError, "layout must be a TaskLayout; got list", ok, 2, ["a"])
    raises(bad, "features must be given: Flatten", nn.Flatten(), 2, LAYOUT)
    raises(bad, "features = 5 features; branch 0 says 4", ok, 2, LAYOUT, 5)
    raises(bad, "features = 4 features; branch 1 says 3", [ok(), MLP(6, (3,))], 2, LAYOUT)
    raises(InvalidTypeError, "trunk must be a torch.nn.Module or None; got str", ok, 2, LAYOUT, trunk="x")
    raises(bad, "batched must be 'auto', True or False; got 'yes'", ok, 2, LAYOUT, batched="yes")
    raises(bad, "no task is named 'z'", ok, 2, LAYOUT, head={"z": nn.Linear})
    raises(InvalidTypeError, "head must make modules, .* got Linear for 'a'", ok, 2, LAYOUT, head=nn.Linear(3, 3))
    raises(InvalidTypeError, "head must return a torch.nn.Module for 'b'", ok, 2, LAYOUT, head={"b": lambda f, c: 1})
    raises(bad, "it returned one twice", ok, 2, LAYOUT, head={"b": lambda f, c: same})
    raises(InvalidTypeError, "aggregator must be callable or None; got str", ok, 2, LAYOUT, aggregator="mgda")
    raises(InvalidTypeError, "gradient_scaling must be True or False; got 'no'", ok, 2, LAYOUT, gradient_scaling="no")
    raises(bad, "gradient_scaling must be False", ok, 2, LAYOUT, aggregator=sum, gradient_scaling=True)
    with pytest.raises(InvalidTypeError, match="model must be a factory"):
        BranchedNet.from_factory(mlp(6)(LAYOUT), LAYOUT, 2)
    with pytest.raises(InvalidTypeError, match="model must make a MultiHeadNet; got MLP"):
        BranchedNet.from_factory(lambda layout: MLP(6), LAYOUT, 2)


def test_what_it_refuses_to_do():
    net = BranchedNet(nn.Flatten(), 2, LAYOUT, 4)
    with pytest.raises(InvalidArgumentError, match=r"must return \[batch, 4\] features for linear heads; got \(3, 5\)"):
        net(torch.zeros(3, 5))
    maps = BranchedNet(nn.Conv2d(1, 4, 1), 2, LAYOUT, 4)
    with pytest.raises(InvalidArgumentError, match=r"must return \[batch, 4\] features .* got \(3, 4, 2, 2\)"):
        maps(torch.zeros(3, 1, 2, 2))
    for labels, message in (
        ([0, 1], "labels must be 4, one branch per task; got 2"),
        ([0, 1, 2, 0], "labels must name branches by position, below 2; got 2"),
        ([0, -1, 0, 0], "below 2; got -1"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            net.forward_chosen(torch.zeros(3, 4), labels)
        with pytest.raises(InvalidArgumentError, match=message):
            net.prune(labels)
    with pytest.raises(InvalidArgumentError, match="k must name branches by position"):
        net.branch_module(2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.9, 1.7, 0, 0], r"\[0\] must be an integer; got 0\.9"),
        ([0, True, 0, 0], r"\[1\] must be an integer; got True"),
        ([0, 1, "1", 0], r"\[2\] must be an integer; got '1'"),
        ([0, 1, 0, torch.tensor(0.5)], r"\[3\] must be an integer; got tensor"),
        ("0101", " must be a sequence of integers or an integer tensor; got '0101'"),
        (None, " must be a sequence of integers or an integer tensor; got None"),
        (1, " must be a sequence of integers or an integer tensor; got 1"),
        ({0: 1}, " must be a sequence of integers or an integer tensor; got {0: 1}"),
        (torch.tensor([0.5, 1, 0, 0]), r" must hold integers; got a tensor of torch\.float32"),
        (torch.tensor([True, False]), r" must hold integers; got a tensor of torch\.bool"),
        (np.array([0.5, 1, 0, 0]), r"\[0\] must be an integer; got .*0\.5"),
    ],
    ids=str,
)
def test_labels_and_positions_that_are_no_integers(labels, message):
    net = net_of(mlp_branches(2))
    for name, call in (
        ("labels", net.prune),
        ("labels", lambda given: net.forward_chosen(torch.zeros(3, 6).double(), given)),
        ("keep", net.drop_branches),
    ):
        with pytest.raises(InvalidTypeError, match=f"^{name}{message}"):
            call(labels)
    assert net.num_branches == 2


@pytest.mark.parametrize("k", [1.0, "1", True, None, torch.tensor(1.0), torch.tensor([1])], ids=str)
def test_a_position_that_is_no_integer(k):
    with pytest.raises(InvalidTypeError, match=r"^k must be an integer; got "):
        net_of(mlp_branches(2)).branch_module(k)


def test_integers_of_every_kind_name_branches():
    net = net_of(mlp_branches(3))
    x = torch.randn(4, 6).double()
    expected = net.prune([2, 0, 2, 0])(x)
    for labels in (
        np.array([2, 0, 2, 0], dtype=np.int32),
        [np.int64(2), np.uint8(0), torch.tensor(2), 0],
        torch.tensor([2, 0, 2, 0], dtype=torch.uint8),
        (2, 0, 2, 0),
    ):
        torch.testing.assert_close(net.prune(labels)(x), expected, rtol=0, atol=0)
    for k in (np.int64(2), torch.tensor(2)):
        torch.testing.assert_close(net.branch_module(k).state_dict(), net.branch_module(2).state_dict())
    with pytest.raises(InvalidArgumentError, match=r"labels must have one dimension; got a tensor \[2, 2\]"):
        net.prune(torch.zeros(2, 2, dtype=torch.int64))
    net.drop_branches(torch.tensor([2, 0]))
    assert net.branch_ids == (2, 0)


def test_what_branches_share_they_share_after_pruning():
    """One embedding in every branch stays one, and one with the trunk's."""
    shared = nn.Linear(6, 5)

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.own = shared, nn.Linear(5, 4)

        def forward(self, inputs):
            return self.own(self.shared(inputs))

    layout = TaskLayout.binary(["a", "b", "c"])
    net = BranchedNet(Branch, 3, layout, features=4)
    pruned = net.prune([0, 2, 0])
    assert pruned.branches[0].shared is pruned.branches[1].shared
    assert pruned.branches[0].own is not pruned.branches[1].own
    assert pruned.branches[0].shared is not shared
    assert sum(p.numel() for p in pruned.branches.parameters()) == 35 + 2 * 24
