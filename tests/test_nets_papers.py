"""The papers' networks: their sizes, counted by hand from the released code, and how they work with the rest."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import nn

from pymtg import BranchedLoss, TaskLayout
from pymtg.data.taskonomy import TASKONOMY5
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import (
    BranchedNet,
    CelebABranch,
    CelebAStem,
    DenseDecoder,
    MultiHeadNet,
    MultiHeadSpec,
    ResNet18,
    SmallCNN,
    XceptionBranch,
    XceptionTrunk,
    count_parameters,
)

LAYOUT = TaskLayout.binary(["a", "b", "c"])


def conv(before, after, side, bias=False):
    return before * after * side**2 + (after if bias else 0)


def test_small_cnn_is_stg_mtls():
    net = SmallCNN()
    expected = conv(3, 32, 5, True) + conv(32, 64, 3, True) + conv(64, 64, 3, True) + 2 * (32 + 64 + 64)
    assert count_parameters(net) == expected + 3136 * 128 + 128
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 128) == (2, net.out_features)
    assert [layer.p for layer in net if isinstance(layer, nn.Dropout)] == [0.2, 0.2]
    assert SmallCNN(1, 9, 5)(torch.rand(2, 1, 9, 9)).shape == (2, 5)


def test_celeba_branch_is_dmtgs():
    net = CelebABranch()
    assert net.out_features == 14400
    assert count_parameters(net) == conv(3, 64, 3) + 2 * conv(64, 64, 3) + 3 * 2 * 64
    images = torch.rand(2, 3, 64, 64)
    assert net(images).shape == (2, 14400)
    limit = (6 / (9 * (3 + 64))) ** 0.5  # Xavier, uniform
    assert 0.95 * limit < net[0][0].weight.abs().max() <= limit


@pytest.mark.parametrize("size", [6, 7, 20, 33])
def test_stem_and_branch_without_it_are_the_whole(size):
    whole, stem, rest = CelebABranch(2, size, 4), CelebAStem(2, 4), CelebABranch(2, size, 4, stem=False)
    images = torch.rand(3, 2, size, size)
    stem.load_state_dict(whole[0].state_dict())
    rest.load_state_dict(
        {f"{int(name[0]) - 1}{name[1:]}": v for name, v in whole.state_dict().items() if name[0] != "0"}
    )
    assert rest.out_features == whole.out_features == whole(images).shape[1]
    assert torch.allclose(rest(stem(images)), whole(images))


def test_resnet18_has_the_known_size():
    # torchvision's, 11,689,512, without its last layer, with a 3 x 3 convolution for the 7 x 7 one
    assert count_parameters(ResNet18()) == 11_689_512 - (512 * 1000 + 1000) - conv(3, 64, 7) + conv(3, 64, 3)
    net = ResNet18(1, 3)
    assert net(torch.rand(2, 1, 9, 14)).shape == (2, 24) == (2, net.out_features)


@pytest.mark.parametrize("spec", [SmallCNN, CelebABranch, ResNet18], ids=lambda spec: spec.__name__)
def test_they_serve_all_trainers_networks(spec):
    options = {"in_channels": 2} | ({} if spec is ResNet18 else {"image_size": 12})
    options |= {"hidden": 5} if spec is SmallCNN else {"width": 3}
    images = torch.rand(4, 2, 12, 12)
    recipe = pickle.loads(pickle.dumps(MultiHeadSpec(spec, **options)))
    assert isinstance(recipe(LAYOUT), MultiHeadNet)
    assert recipe(LAYOUT)(images).shape == (4, 3)
    net = BranchedNet.from_factory(recipe, LAYOUT, 2)
    net.load_multihead(recipe(LAYOUT))
    net.eval()
    assert net(images).shape == (2, 4, 3)
    pruned = net.prune([0, 1, 0])
    assert torch.allclose(pruned(images), net.forward_chosen(images, [0, 1, 0]), atol=1e-6)


def test_xception_has_the_released_codes_shape():
    with torch.device("meta"):
        trunk, branch, head = XceptionTrunk(), XceptionBranch(), DenseDecoder(512, 18)
        features = trunk(torch.zeros(1, 3, 256, 256))
        assert features.shape == (1, 728, 16, 16) == (1, trunk.out_features, 16, 16)
        assert branch(features).shape == (1, 512, 16, 16)
        assert head(branch(features)).shape == (1, 18, 256, 256)

    def separable(before, after):
        return 9 * before + before * after

    block = 3 * (separable(728, 728) + 2 * 728)
    assert count_parameters(branch) == 7 * block + separable(728, 512) + 2 * 512

    def shrinking(before, after):
        convolutions = separable(before, after) + separable(after, after) + conv(after, after, 2, True)
        return convolutions + 2 * 2 * after + before * after + 2 * after

    first = conv(3, 32, 3) + conv(32, 64, 3) + 2 * (32 + 64)
    blocks = shrinking(64, 128) + shrinking(128, 256) + shrinking(256, 728) + block
    assert count_parameters(trunk) == first + blocks
    up = sum(4 * a * b + b + 2 * b for a, b in ((512, 128), (128, 64), (64, 48), (48, 32)))
    same = sum(conv(a, a, 3, True) + 2 * a for a in (128, 64, 48))
    assert count_parameters(head) == up + same + conv(32, 18, 3, True)


def test_dense_branches_learn_under_an_assignment(generator):
    """One batch of random targets, some of them missing, is learnt by heart; what is missing does not matter."""
    torch.manual_seed(0)
    head = functools.partial(DenseDecoder, widths=(6, 6))
    trunk = XceptionTrunk((4, 4, 6))
    net = BranchedNet(lambda: XceptionBranch(6, (6,), 6), 2, TASKONOMY5, trunk=trunk, head=head)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    targets = {
        name: torch.rand(2, c, 16, 16, generator=generator) for name, c in zip(TASKONOMY5, (1, 3, 1, 1, 1), strict=True)
    }
    targets["segment_semantic"] = torch.randint(1, 18, (2, 16, 16), generator=generator)
    targets["segment_semantic"][:, :8] = -100
    targets["depth_zbuffer"][:, :, :, :8] = float("nan")
    dense = {"segment_semantic": "dense_cross_entropy"}
    loss_fn = BranchedLoss(
        TASKONOMY5, dense | dict.fromkeys(["depth_zbuffer", "normal", "keypoints2d", "edge_texture"], "l1")
    )
    assignment = torch.full((5, 2), 0.5)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    losses = []
    for _ in range(25):
        loss = loss_fn(net(images), targets, assignment)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.isfinite(p).all() for p in net.parameters())
    pruned = net.eval().prune([0, 1, 0, 1, 1])
    chosen = net.forward_chosen(images, [0, 1, 0, 1, 1])
    for name, found in pruned(images).items():
        assert torch.allclose(found, chosen[name], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SmallCNN(3, 7), InvalidArgumentError, "image_size must be at least 8"),
        (lambda: SmallCNN(3, 32, dropout=1.0), InvalidArgumentError, "dropout must lie"),
        (lambda: SmallCNN(3.0), InvalidTypeError, "in_channels must be an integer"),
        (lambda: SmallCNN()(torch.rand(1, 3, 28, 28)), InvalidArgumentError, r"\[batch, 3, 32, 32\]"),
        (lambda: CelebABranch(image_size=5), InvalidArgumentError, "image_size must be at least 6"),
        (lambda: CelebABranch()(torch.rand(1, 1, 64, 64)), InvalidArgumentError, r"\[batch, 3, 64, 64\]"),
        (lambda: CelebABranch(stem=False)(torch.rand(1, 3, 64, 64)), InvalidArgumentError, r"\[batch, 64, 31, 31\]"),
        (lambda: ResNet18(width=0), InvalidArgumentError, "width must be at least 1"),
        (lambda: ResNet18(3, 2)(torch.rand(1, 3, 7, 9)), InvalidArgumentError, "at least 8"),
        (lambda: XceptionTrunk((4,)), InvalidArgumentError, "widths must be at least two"),
        (lambda: XceptionTrunk((4, 4, 5))(torch.rand(1, 3, 6, 8)), InvalidArgumentError, "halved at every stage"),
        (lambda: DenseDecoder(4, 0), InvalidArgumentError, "channels must be at least 1"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
