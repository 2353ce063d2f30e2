"""The pruned network: exact to the chosen heads, no more than it needs, and a plain module in every way."""

import copy
import pickle

import pytest
import torch
from _branched import LAYOUT, conv_branches, mlp_branches, net_of, unsettled
from _settings import new_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import (
    MLP,
    BranchedNet,
    ConvNet,
    GroupedNet,
    MultiHeadNet,
    count_parameters,
    load_grouped,
    mlp,
    save_grouped,
)


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exact_to_the_chosen_heads(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    layout = TaskLayout([f"t{i}" for i in range(len(counts))], counts)
    branches = data.draw(st.integers(1, 5))
    labels = data.draw(st.lists(st.integers(0, branches - 1), min_size=len(counts), max_size=len(counts)))
    net = net_of(mlp_branches(branches), layout, batched=data.draw(st.sampled_from([True, False])))
    x = torch.randn(data.draw(st.integers(0, 5)), 6).double()
    logits, pruned = net(x), net.prune(labels)
    for t, got in enumerate(layout.split(pruned(x))):
        torch.testing.assert_close(got, logits[labels[t]][:, layout.columns(t)])
    torch.testing.assert_close(pruned(x), net.forward_chosen(x, labels))
    assert pruned.branch_ids == tuple(sorted(set(labels)))
    assert [pruned.branch_ids[label] for label in pruned.labels] == labels


@pytest.mark.parametrize("batched", [True, False])
def test_only_what_is_needed_and_nothing_shared(batched):
    net = BranchedNet(lambda: ConvNet(2, (3, 4)), 4, LAYOUT, trunk=nn.Conv2d(1, 2, 1), batched=batched)
    pruned = net.prune([2, 0, 2, 2])
    one = count_parameters(net.branch_module(0))
    assert count_parameters(pruned) == count_parameters(net.trunk) + 2 * one + LAYOUT.num_logits * (4 + 1)
    assert type(pruned.branches[0]) is ConvNet
    mine = {p.data_ptr() for p in pruned.state_dict().values()}
    assert mine.isdisjoint(p.data_ptr() for p in net.state_dict().values())
    assert pruned.training
    assert not net.eval().prune([0, 0, 0, 0]).training


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_float32_to_a_millionth(batched, batch_norm):
    if batch_norm:
        net = BranchedNet([unsettled(ConvNet(1, (8, 16))) for _ in range(5)], 5, LAYOUT, batched=batched)
        x = torch.randn(32, 1, 8, 8)
    else:
        net, x = BranchedNet(lambda: MLP(64, (128, 128)), 5, LAYOUT, batched=batched), torch.randn(32, 64)
    net.float().eval()
    labels = [4, 0, 1, 0]
    assert (net.prune(labels)(x) - net.forward_chosen(x, labels)).abs().max() < 1e-6


def exported(module, x):
    return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=2**20)},)).module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it exports
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["mlp", "conv", "custom"])
def test_exports_with_any_batch(kind):
    branches = conv_branches(3) if kind == "conv" else mlp_branches(3)
    head = {"b": lambda f, c: nn.Sequential(nn.Linear(f, 7), nn.ReLU(), nn.Linear(7, c))} if kind == "custom" else None
    pruned = net_of(branches, head=head).eval().prune([2, 0, 2, 0])
    shape = (2, 8, 8) if kind == "conv" else (6,)
    program = exported(pruned, torch.randn(4, *shape).double())
    for batch in (1, 4, 13):
        x = torch.randn(batch, *shape).double()
        torch.testing.assert_close(program(x), pruned(x))


def test_saves_copies_and_pickles(tmp_path):
    pruned, other = (net_of(conv_branches(3), trunk=nn.Conv2d(1, 2, 1)).eval().prune([2, 0, 2, 0]) for _ in range(2))
    x = torch.randn(4, 1, 8, 8).double()
    save_file(pruned.state_dict(), tmp_path / "pruned.safetensors")
    other.load_state_dict(load_file(tmp_path / "pruned.safetensors"))
    for again in (other, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert type(again) is GroupedNet
        assert torch.equal(again(x), pruned(x))


def test_trains_on(generator):
    pruned = BranchedNet(MLP(6, (8,)), 2, LAYOUT, trunk=nn.Linear(5, 6)).prune([1, 0, 1, 0])
    optimizer = torch.optim.Adam(pruned.parameters(), lr=1e-2)
    x, wanted = torch.randn(64, 5, generator=generator), torch.randn(64, LAYOUT.num_logits, generator=generator)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append((pruned(x) - wanted).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in pruned.parameters())


def dense(features, classes):
    return nn.Conv2d(features, classes, 1)


def pooled(features, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def test_heads_of_the_users_own():
    x = torch.randn(5, 2, 6, 6)
    mixed = BranchedNet(
        nn.Conv2d(2, 4, 3), 3, LAYOUT, 4, head={"a": dense, "b": pooled, "c": pooled, "d": dense}
    ).eval()
    labels = [2, 0, 0, 2]
    pruned, chosen = mixed.prune(labels)(x), mixed.forward_chosen(x, labels)
    assert list(pruned) == list(chosen) == list(LAYOUT)
    for name, got in pruned.items():
        torch.testing.assert_close(got, chosen[name])
    flat = BranchedNet(nn.Conv2d(2, 4, 3), 3, LAYOUT, 4, head=pooled).eval()
    assert flat.prune(labels)(x).shape == (5, LAYOUT.num_logits)
    torch.testing.assert_close(flat.prune(labels)(x), flat.forward_chosen(x, labels))


def test_linear_heads_beside_others():
    net = net_of(mlp_branches(3), head={"c": nn.Linear}).eval()
    x = torch.randn(5, 6).double()
    for labels in ([2, 0, 1, 2], [0, 0, 1, 0], [1, 1, 1, 1]):
        torch.testing.assert_close(net.prune(labels)(x), net.forward_chosen(x, labels))


def test_the_weights_of_other_groups_are_refused():
    layout = TaskLayout.binary(["a", "b", "c", "d"])
    net, other = (net_of(mlp_branches(2), layout).prune(labels) for labels in ([0, 0, 1, 1], [0, 1, 0, 1]))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    before = copy.deepcopy(other.state_dict())
    for target, source in ((other, net), (nn.Sequential(other), nn.Sequential(net))):
        with pytest.raises(InvalidArgumentError, match=r"labels \(0, 1, 0, 1\), as here; got one of \(0, 0, 1, 1\)"):
            target.load_state_dict(source.state_dict())
    torch.testing.assert_close(other.state_dict(), before)
    for state in (None, torch.tensor(0), torch.tensor([0, 1]), torch.tensor([0.5, 1, 0, 1])):
        with pytest.raises(InvalidArgumentError, match="must be of the labels"):
            other.set_extra_state(state)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_networks_trained_apart(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    layout = TaskLayout([f"t{i}" for i in range(len(counts))], counts)
    networks = [mlp(6, (5,))(layout).double() for _ in range(data.draw(st.integers(1, 4)))]
    labels = data.draw(st.lists(st.integers(0, len(networks) - 1), min_size=len(counts), max_size=len(counts)))
    grouped = GroupedNet.from_networks(networks, torch.tensor(labels))
    x = torch.randn(data.draw(st.integers(0, 5)), 6).double()
    for t, got in enumerate(layout.split(grouped(x))):
        torch.testing.assert_close(got, networks[labels[t]](x)[:, layout.columns(t)])
    assert grouped.branch_ids == tuple(sorted(set(labels)))


def test_networks_with_statistics_of_batches_saved_and_loaded(tmp_path):
    networks = [MultiHeadNet(LAYOUT, ConvNet(1, (3, 4))) for _ in range(3)]
    images = torch.randn(4, 1, 8, 8)
    for network in networks:
        network(images)  # moves the running statistics
        network.eval()
    grouped = load_grouped(save_grouped(tmp_path / "net", GroupedNet.from_networks(networks, [2, 0, 2, 0])))
    wanted = [networks[k](images)[:, LAYOUT.columns(t)] for t, k in enumerate([2, 0, 2, 0])]
    torch.testing.assert_close(grouped(images), torch.cat(wanted, 1))


def test_networks_that_do_not_belong_together():
    net = mlp(6, (5,))(LAYOUT)
    other = mlp(6, (5,))(TaskLayout.binary(["a"]))
    headless = mlp(6, (5,))(LAYOUT)
    headless.head = nn.Sequential(headless.head)

    class Scaled(MultiHeadNet):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    for networks, labels, error, message in (
        ([], [0] * 4, InvalidArgumentError, "networks must be at least one"),
        ([net, other], [0] * 4, InvalidArgumentError, r"that of networks\[1\] is not the first one's"),
        (
            [net, nn.Linear(6, 7)],
            [0] * 4,
            InvalidTypeError,
            r"networks\[1\] must be a pymtg.nets.MultiHeadNet; got Lin",
        ),
        ([Scaled(LAYOUT, MLP(6, (5,)))], [0] * 4, InvalidTypeError, "got Scaled"),
        ([headless], [0] * 4, InvalidTypeError, r"networks\[0\] must have a linear head"),
        ([net], [0] * 3, InvalidArgumentError, r"labels must be one per task \(4\); got 3"),
        ([net], [0, 0, 0, 1], InvalidArgumentError, "labels must name branches by position"),
        ([net], [0, 0, 0, 0.5], InvalidTypeError, "must be an integer"),
    ):
        with pytest.raises(error, match=message):
            GroupedNet.from_networks(networks, labels)
