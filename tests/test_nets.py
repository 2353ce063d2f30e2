"""Backbones, the multi-head network and its recipes."""

import pickle

import pytest
import torch
from _settings import new_seed
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import MLP, ConvNet, MultiHeadNet, MultiHeadSpec, convnet, count_parameters, mlp

LAYOUT = TaskLayout(["a", "b", "c"], [1, 3, 2])


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


def small_backbone(width):
    return nn.Linear(4, width)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_logits_are_each_tasks_head_on_the_shared_features(batch):
    net = MultiHeadNet(LAYOUT, MLP(5, (8, 4)))
    x = torch.randn(batch, 5)
    logits = net(x)
    assert logits.shape == (batch, 6)
    features = net.backbone(x)
    for t, part in enumerate(LAYOUT.split(logits)):
        rows = LAYOUT.columns(t)
        expected = features @ net.head.weight[rows].T + net.head.bias[rows]
        torch.testing.assert_close(part, expected)


def test_a_tasks_loss_reaches_its_own_head_and_the_backbone():
    net = mlp(5, (8,))(LAYOUT)
    net(torch.randn(4, 5))[:, LAYOUT.columns("b")].sum().backward()
    used = net.head.weight.grad.abs().sum(1) > 0
    assert not used[[0, 4, 5]].any()
    assert net.backbone.layers[0].weight.grad.abs().sum() > 0


def test_mlp_flattens_images():
    net = MLP(2 * 3 * 4, (5,))
    x = torch.randn(6, 2, 3, 4)
    torch.testing.assert_close(net(x), net(x.flatten(1)))


def test_dropout_only_where_asked_for_and_only_in_training():
    assert not any(isinstance(m, nn.Dropout) for m in MLP(4).modules())
    net = MLP(4, (64,), dropout=0.5)
    x = torch.randn(3, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("size", [8, 11])
def test_convnet(size):
    net = convnet(3, (4, 6, 8))(LAYOUT)
    assert net(torch.randn(2, 3, size, size + 5)).shape == (2, 6)


def test_compiles_without_a_graph_break():
    net = mlp(5, (8,))(LAYOUT)
    x = torch.randn(4, 5)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))


def test_parameter_count():
    net = mlp(64, (10, 20))(LAYOUT)
    assert count_parameters(net) == 65 * 10 + 11 * 20 + 21 * 6
    net.head.weight.requires_grad_(False)
    assert count_parameters(net, trainable=True) == count_parameters(net) - 20 * 6
    tied = nn.Sequential(linear := nn.Linear(3, 3), linear)
    assert count_parameters(tied) == 12


def test_recipe_makes_fresh_networks_that_a_seed_repeats(seed):
    spec = mlp(5, hidden=[8, 4], dropout=0.1)
    first, second = spec(LAYOUT), spec(LAYOUT)
    assert not torch.equal(first.head.weight, second.head.weight)
    torch.manual_seed(seed)
    again = spec(LAYOUT)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))


def test_recipes_are_values():
    spec = mlp(5, [8, 4])
    assert spec == mlp(5, (8, 4)) == pickle.loads(pickle.dumps(spec))
    assert hash(spec) == hash(mlp(5, (8, 4)))
    assert spec != mlp(5, (8, 4), dropout=0.1)
    assert spec != convnet(3)
    assert spec != "mlp"
    assert repr(spec) == "MultiHeadSpec(MLP, in_features=5, hidden=(8, 4), dropout=0.0)"
    with pytest.raises(AttributeError, match="frozen"):
        spec.options = ()
    with pytest.raises(AttributeError, match="frozen"):
        del spec.options


def test_recipe_of_any_backbone():
    spec = MultiHeadSpec(small_backbone, features=7, width=7)
    assert spec(LAYOUT)(torch.randn(2, 4)).shape == (2, 6)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert repr(spec) == "MultiHeadSpec(small_backbone, features=7, width=7)"
    assert MultiHeadSpec(nn.Linear, in_features=4, out_features=3)(LAYOUT).head.in_features == 3


def test_networks_can_be_pickled_and_their_state_moved():
    net = mlp(5)(LAYOUT)
    clone = pickle.loads(pickle.dumps(net))
    other = mlp(5)(LAYOUT)
    other.load_state_dict(net.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(net(x), clone(x))
    assert torch.equal(net(x), other(x))
    assert "3 tasks, 6 logits" in repr(net)


@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 2), (5,), ()])
def test_wrong_input_width(shape):
    with pytest.raises(InvalidArgumentError, match=r"inputs must be \[batch, 5\]"):
        mlp(5)(LAYOUT)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 7), (2, 3, 8), (3, 8, 8)])
def test_wrong_images(shape):
    with pytest.raises(InvalidArgumentError, match=r"inputs must be \[batch, 3, H, W\].*at least 8"):
        convnet(3, (4, 4, 4))(LAYOUT)(torch.zeros(shape))


@pytest.mark.parametrize("make", [mlp, MLP, convnet, ConvNet])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), InvalidArgumentError, "in_.* must be at least 1; got 0"),
        ((2.0,), InvalidTypeError, "in_.* must be an integer; got 2.0"),
        ((True,), InvalidTypeError, "in_.* must be an integer"),
        ((4, ()), InvalidArgumentError, "must hold at least one"),
        ((4, (3, -1)), InvalidArgumentError, r"\[1\] must be at least 1; got -1"),
        ((4, 64), InvalidTypeError, "must be a sequence of integers; got 64"),
        ((4, "64"), InvalidTypeError, "must be a sequence"),
        ((4, (3,), 1.0), InvalidArgumentError, r"dropout must lie in \[0, 1\)"),
        ((4, (3,), float("nan")), InvalidArgumentError, "dropout must lie"),
        ((4, (3,), "0.5"), InvalidTypeError, "dropout must be a number"),
    ],
)
def test_bad_options_are_told_where_they_are_given(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(*arguments)


def test_bad_parts():
    with pytest.raises(InvalidTypeError, match="layout must be a TaskLayout"):
        MultiHeadNet(["a"], MLP(3))
    with pytest.raises(InvalidTypeError, match="layout must be a TaskLayout"):
        mlp(3)(3)
    with pytest.raises(InvalidTypeError, match=r"backbone must be a torch\.nn\.Module"):
        MultiHeadNet(LAYOUT, MLP)
    with pytest.raises(InvalidArgumentError, match="Flatten has no attribute out_features"):
        MultiHeadNet(LAYOUT, nn.Flatten())
    with pytest.raises(InvalidArgumentError, match="features must be at least 1"):
        MultiHeadNet(LAYOUT, nn.Flatten(), 0)
    with pytest.raises(InvalidArgumentError, match=r"backbone must return \[batch, 4\] features; got \(2, 3\)"):
        MultiHeadNet(LAYOUT, nn.Flatten(), 4)(torch.zeros(2, 3))
    with pytest.raises(InvalidTypeError, match="got a ready MLP"):
        MultiHeadSpec(MLP(3))
    with pytest.raises(InvalidTypeError, match="backbone must be callable"):
        MultiHeadSpec("mlp")
    with pytest.raises(InvalidTypeError, match="features must be an integer"):
        MultiHeadSpec(MLP, "8")
