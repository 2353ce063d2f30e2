"""Branches that run together against the same branches one by one: values, gradients, running statistics."""

import copy
import pickle

import pytest
import torch
from _branched import LAYOUT, conv_branches, mlp_branches, net_of, unsettled, weighted_sum
from _settings import new_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pymtg.errors import InvalidArgumentError
from pymtg.nets import MLP, BranchedNet, ConvNet
from pymtg.nets._separate import SeparateBranches
from pymtg.nets._stacked import StackedBranches


@pytest.fixture(autouse=True)
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    torch.manual_seed(value)


def strided():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 6, (1, 3), dilation=(1, 2), padding="same", groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
        nn.LayerNorm(5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3, bias=False),
    )


def one_dimensional():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, bias=False),
        nn.BatchNorm1d(4, affine=False),
        nn.ReLU(),
        nn.MaxPool1d(3, stride=2, padding=1),
        nn.Conv1d(4, 3, 1),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


def volume():
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(inplace=True), nn.MaxPool3d(2), nn.Flatten())


def norm_before_everything():
    relu = nn.ReLU()
    return nn.Sequential(relu, nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), relu, ConvNet(4, (4,)), MLP(4, (6,)), nn.Tanh())


def tokens():
    return nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.SiLU(), nn.LayerNorm((5, 4)), nn.Linear(4, 2))


def without_channels():
    """What pools over two dimensions takes [B, H, W] as well, whose rows are then pooled one by one."""
    pools = nn.MaxPool2d(3, stride=1, padding=1), nn.AdaptiveAvgPool2d((2, 3))
    return nn.Sequential(nn.Linear(4, 5), pools[0], nn.Tanh(), nn.Conv1d(5, 3, 2), pools[1], nn.Flatten())


def nothing_to_learn():
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten())


CASES = {
    "mlp": (lambda: MLP(6, (8, 4)), (7, 6)),
    "mlp of images": (lambda: MLP(12, (3,)), (5, 3, 2, 2)),
    "convnet": (lambda: ConvNet(3, (4, 6, 5)), (5, 3, 8, 11)),
    "strided": (strided, (6, 4, 8, 8)),
    "1d": (one_dimensional, (6, 2, 9)),
    "3d": (volume, (3, 1, 5, 5, 5)),
    "norm first": (norm_before_everything, (6, 3, 8, 8)),
    "tokens": (tokens, (6, 5, 3)),
    "without channels": (without_channels, (6, 5, 4)),
    "nothing to learn": (nothing_to_learn, (3, 2, 4, 4)),
}


def both(make, branches, fanned):
    modules = [unsettled(make()) for _ in range(branches)]
    return StackedBranches(modules, fanned), SeparateBranches(copy.deepcopy(modules), fanned)


def gradients_of(branches, k):
    """Return the gradients of branch k of stacked branches, under the names of a plain branch."""
    of_gradients = copy.deepcopy(branches)
    for mine, theirs in zip(of_gradients.parameters(), branches.parameters(), strict=True):
        mine.data = torch.zeros_like(mine) if theirs.grad is None else theirs.grad.clone()
    return dict(of_gradients.module(k).named_parameters())


@pytest.mark.parametrize("fanned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_same_values_gradients_and_statistics(case, fanned):
    make, shape = CASES[case]
    together, alone = both(make, 3, fanned)
    for training in (True, True, False):
        together.train(training)
        alone.train(training)
        x = torch.randn(3, *shape) if fanned else torch.randn(*shape)
        mine, theirs = x.double().requires_grad_(), x.double().requires_grad_()
        got, expected = together(mine), alone(theirs)
        torch.testing.assert_close(got, expected)
        weights = torch.randn_like(got)
        for branches, out in ((together, got), (alone, expected)):
            branches.zero_grad()
            (out * weights).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        for k in range(3):
            own = gradients_of(together, k)
            for name, parameter in alone.each[k].named_parameters():
                torch.testing.assert_close(own[name], parameter.grad)
            torch.testing.assert_close(together.module(k).state_dict(), alone.each[k].state_dict())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 6),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_widths(branches, batch, widths, fanned, seed):
    torch.manual_seed(seed)
    together, alone = both(lambda: MLP(5, widths), branches, fanned)
    x = torch.randn(branches, batch, 5).double() if fanned else torch.randn(batch, 5).double()
    torch.testing.assert_close(together(x), alone(x))


@pytest.mark.parametrize("branches", [mlp_branches, conv_branches])
def test_a_branch_taken_out_is_the_plain_module(branches):
    modules = branches(3)
    together = StackedBranches(modules).eval()
    x = torch.randn(4, 6).double() if branches is mlp_branches else torch.randn(4, 2, 4, 4).double()
    for k, module in enumerate(modules):
        taken = together.module(k)
        assert repr(taken) == repr(module)
        assert all(p.is_contiguous() and p.device.type == "cpu" for p in taken.state_dict().values())
        torch.testing.assert_close(taken(x), module.eval()(x))
        torch.testing.assert_close(together(x)[k], module(x))


def test_copies_pickles_and_state_dicts():
    together = StackedBranches(conv_branches(2))
    x = torch.randn(3, 2, 4, 4).double()
    for other in (copy.deepcopy(together), pickle.loads(pickle.dumps(together))):
        torch.testing.assert_close(other.module(1).state_dict(), together.module(1).state_dict())
        torch.testing.assert_close(other.eval()(x), copy.deepcopy(together).eval()(x))
    again = StackedBranches(conv_branches(2))
    again.load_state_dict(together.state_dict())
    torch.testing.assert_close(again.eval()(x), together.eval()(x))


def test_in_half_the_bytes():
    together = StackedBranches([ConvNet(2, (3, 4)) for _ in range(2)]).to(torch.bfloat16)
    features = together(torch.randn(4, 2, 8, 8).bfloat16())
    assert features.dtype == together.module(0).blocks[0][0].weight.dtype == torch.bfloat16
    assert together.module(0).blocks[0][1].num_batches_tracked == 1


def test_with_autocast():
    modules = [ConvNet(2, (3, 4)) for _ in range(2)]
    together, alone = StackedBranches(modules), SeparateBranches(copy.deepcopy(modules))
    mlps = [MLP(4, (5, 3)) for _ in range(2)]
    x = torch.randn(4, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        features, expected = together(x), alone(x)
        torch.testing.assert_close(features, expected, rtol=0.05, atol=0.05)
        outputs = StackedBranches(mlps, fanned=True)(features)
    assert outputs.dtype == torch.bfloat16
    outputs.float().sum().backward()
    assert together.layers[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("together", [True, False])
def test_an_empty_batch_of_images(together):
    net = BranchedNet(lambda: ConvNet(2, (3, 4)), 2, LAYOUT, batched=together).eval()
    assert net(torch.zeros(0, 2, 8, 8)).shape == (2, 0, LAYOUT.num_logits)


def test_norms_that_stand_still_stay_so():
    branch = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    branch[1].eval()
    together = StackedBranches([copy.deepcopy(branch) for _ in range(2)])
    together(torch.randn(5, 3))
    assert together.module(0)[1].num_batches_tracked == 0


def test_shapes_that_are_not_known_yet_run_one_by_one():
    def lazy():
        return nn.Sequential(nn.LazyLinear(5), nn.ReLU())

    with pytest.raises(InvalidArgumentError, match="not known before the first call"):
        BranchedNet(lazy, 2, LAYOUT, 5, batched=True)
    net = BranchedNet(lazy, 2, LAYOUT, 5)
    assert not net.batched
    assert net(torch.zeros(3, 4)).shape == (2, 3, LAYOUT.num_logits)


def test_dropout_draws_masks_for_every_branch():
    first = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(2, 2, 1), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5))
    together = StackedBranches([copy.deepcopy(first) for _ in range(3)])
    x = torch.rand(50, 2, 8, 8) + 1
    spread = together.layers[:2](x)
    kept = (spread != 0).double()
    assert abs(kept.mean() - 0.7) < 0.03
    between = torch.corrcoef(kept.flatten(1))
    assert (between - torch.eye(3)).abs().max() < 0.06
    together.eval()
    torch.testing.assert_close(together(x), together.module(0).eval()(x).expand(3, -1, -1))


def test_a_dropped_channel_is_dropped_as_a_whole():
    together = StackedBranches([nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout2d(0.5)) for _ in range(2)])
    gone = (together(torch.rand(20, 1, 3, 3)) == 0).flatten(3)
    assert (gone.all(-1) == gone.any(-1)).all()
    assert 0 < gone.double().mean() < 1


def test_relu_behind_max_pooling_changes_nothing():
    make = lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    together, alone = both(make, 2, False)
    x = torch.randint(-2, 3, (8, 1, 6, 6)).double()  # many ties, also at zero
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = together(mine), alone(theirs)
    assert [type(layer).__name__ for layer in together.layers][1:3] == ["MaxPool2d", "ReLU"]
    assert torch.equal(got, expected)
    for out in (got, expected):
        (out**2).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_in_place_behind_dropout_that_hands_on_the_shared_input():
    make = lambda: nn.Sequential(nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(6, 3), nn.ELU(inplace=True))  # noqa: E731
    together, alone = both(make, 3, False)
    x = torch.randn(5, 6).double()
    got, expected = together.eval()(x.clone()), alone.eval()(x.clone())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("batched", [True, False])
def test_branches_that_begin_in_place_leave_the_input_to_one_another(batched):
    make = lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(6, 3))  # noqa: E731
    net = net_of([make() for _ in range(3)], features=3, trunk=nn.Linear(5, 6), batched=batched)
    x = torch.randn(4, 5).double()
    pruned, labels = net.prune([2, 0, 1, 0]), [2, 0, 1, 0]
    shared = net.trunk(x)
    features = torch.stack([net.branch_module(k)(shared.clone()) for k in range(3)])
    torch.testing.assert_close(net(x), net.heads(features))
    torch.testing.assert_close(pruned(x), net.forward_chosen(x, labels))
    weighted_sum(net(x)).backward()
    weighted_sum(pruned(x)).backward()


class Own(nn.Module):
    def forward(self, x):
        return x


def hooked():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3), Own()), r"layer '1' \(Own\) has no stacked form"),
        (lambda: nn.Sequential(nn.Sequential(nn.LSTM(3, 3))), r"layer '0.0' \(LSTM\)"),
        (Own, "Own has no stacked form"),
        (hooked, "Linear has hooks"),
        (tied, "parameters or buffers are shared"),
        (lambda: nn.Conv2d(1, 1, 3, padding_mode="circular"), "pads with other than zeros"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(3, 3)), "last dimension of maps"),
        (lambda: nn.BatchNorm1d(3, momentum=None), "has no momentum"),
        (lambda: nn.Flatten(2), "flattens other than everything"),
        (lambda: nn.MaxPool2d(2, return_indices=True), "returns indices"),
        (lambda: nn.Sequential(nn.Linear(3, 6), nn.AvgPool1d(2)), "may pool along the features"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "is built otherwise"),
    ],
)
def test_what_cannot_run_together_runs_one_by_one_and_says_why(make, message):
    with pytest.raises(InvalidArgumentError, match=f"cannot run together.*{message}"):
        BranchedNet(make, 2, LAYOUT, 3, batched=True)
    assert not BranchedNet(make, 2, LAYOUT, 3).batched


def frozen(first):
    first.layers[0].weight.requires_grad_(False)
    return first


def pooled(ceil_mode):
    return nn.Sequential(nn.AvgPool2d(2, ceil_mode=ceil_mode), nn.Flatten())


@pytest.mark.parametrize(
    "branches",
    [
        [MLP(3, (4,)), MLP(3, (5, 4))],
        [MLP(3, (4,)), frozen(MLP(3, (4,)))],
        [MLP(3, (4,)), MLP(3, (4,)).double()],
        [MLP(3, (4,)), nn.Linear(3, 4)],
        [nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()],
        [pooled(False), pooled(True)],
    ],
)
def test_branches_that_differ(branches):
    with pytest.raises(InvalidArgumentError, match=r"branch 1 (is built otherwise|has other parameters)"):
        BranchedNet(branches, 2, LAYOUT, 4, batched=True)
    assert not BranchedNet(branches, 2, LAYOUT, 4).batched


def test_a_hook_on_any_branch_is_kept():
    assert not BranchedNet([nn.Linear(3, 3), hooked()], 2, LAYOUT, 3).batched


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_hooks_on_parameters_are_kept(register, name):
    branches, seen = [MLP(3, (4,)) for _ in range(3)], []
    handle = getattr(getattr(branches[1].layers[0], name), register)(lambda tensor: seen.append(tensor.shape))
    with pytest.raises(InvalidArgumentError, match=r"cannot run together: layer 'layers\.0' \(Linear\) has hooks"):
        BranchedNet(branches, 3, LAYOUT, batched=True)
    net = BranchedNet(branches, 3, LAYOUT)
    assert not net.batched
    net(torch.randn(5, 3)).sum().backward()
    assert seen == [getattr(branches[1].layers[0], name).shape]
    handle.remove()
    assert BranchedNet(branches, 3, LAYOUT).batched


def test_together_where_layers_are_small():
    assert BranchedNet(lambda: MLP(64, (128, 128)), 3, LAYOUT).batched
    assert BranchedNet(lambda: ConvNet(3, (32, 64)), 3, LAYOUT).batched
    assert not BranchedNet(lambda: MLP(64, (2048, 2048)), 3, LAYOUT).batched
    assert not BranchedNet(lambda: ConvNet(3, (32, 64, 128)), 3, LAYOUT).batched
    assert BranchedNet(lambda: ConvNet(3, (32, 64, 128)), 3, LAYOUT, batched=True).batched
    assert not BranchedNet(lambda: MLP(64, (8,)), 1, LAYOUT).batched
    assert not BranchedNet(lambda: MLP(64, (8,)), 3, LAYOUT, batched=False).batched


def test_inputs_of_another_shape_are_refused_as_by_a_plain_branch():
    for batched in (True, False):
        with pytest.raises(InvalidArgumentError, match=r"inputs must be \[batch, 5\]"):
            BranchedNet(lambda: MLP(5, (3,)), 2, LAYOUT, batched=batched)(torch.zeros(4, 6))
        with pytest.raises(InvalidArgumentError, match=r"inputs must be \[batch, 1, H, W\]"):
            BranchedNet(lambda: ConvNet(1, (3,)), 2, LAYOUT, batched=batched)(torch.zeros(4, 2, 8, 8))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what torch's compiler does
@pytest.mark.parametrize("branch", [lambda: MLP(6, (8, 4)), lambda: ConvNet(2, (4, 4))])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(branch, training):
    net = BranchedNet(branch, 3, LAYOUT, batched=True, gradient_scaling=True, trunk=nn.Identity()).train(training)
    x = torch.randn(5, 6) if isinstance(branch(), MLP) else torch.randn(5, 2, 8, 8)
    plain = copy.deepcopy(net)
    torch._dynamo.reset()
    compiled, expected = torch.compile(net, fullgraph=True, backend="aot_eager")(x), plain(x)
    torch.testing.assert_close(compiled, expected)
    for outputs in (compiled, expected):
        outputs.square().sum().backward()
    for got, parameter in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, parameter.grad, rtol=1e-3, atol=1e-5)
