"""A pruned network that is written and built again is the same network."""

from __future__ import annotations

import json

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.nets import (
    MLP,
    BranchedNet,
    CelebABranch,
    CelebAStem,
    ConvNet,
    ResNet18,
    SmallCNN,
    load_grouped,
    save_grouped,
)

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 2, 1])


def pruned(labels, trunk=None, dropout=0.0):
    width = 6 if trunk is None else trunk.out_features
    return BranchedNet(lambda: MLP(width, (5, 4), dropout), 3, LAYOUT, trunk=trunk).prune(labels).eval()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [2, 0, 2, 0], [0, 1, 2, 1]], ids=str)
@pytest.mark.parametrize("trunk", [None, (7,), (7, 8)], ids=str)
def test_what_is_loaded_computes_the_same(tmp_path, generator, labels, trunk):
    net = pruned(labels, None if trunk is None else MLP(6, trunk, 0.5), 0.25)
    again = load_grouped(save_grouped(tmp_path / "m.safetensors", net))
    inputs = torch.randn(9, 6, generator=generator)
    assert torch.equal(again(inputs), net(inputs))
    assert (again.labels, again.branch_ids, again.layout) == (net.labels, net.branch_ids, LAYOUT)
    assert str(again) == str(net)


IMAGE_NETS = {
    "convnet": (lambda: ConvNet(3, (4, 5), 0.1), None),
    "cnn": (lambda: SmallCNN(3, 16, 7), None),
    "celeba": (lambda: CelebABranch(3, 16, 4), None),
    "celeba behind a stem": (lambda: CelebABranch(3, 16, 4, stem=False), lambda: CelebAStem(3, 4)),
    "resnet18": (lambda: ResNet18(3, 2), None),
}


@pytest.mark.parametrize("kind", IMAGE_NETS)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [2, 0, 2, 0]], ids=str)
def test_networks_for_images_are_built_again(tmp_path, generator, kind, labels):
    branch, trunk = IMAGE_NETS[kind]
    branched = BranchedNet(branch, 3, LAYOUT, trunk=None if trunk is None else trunk())
    images = torch.rand(5, 3, 16, 16, generator=generator)
    branched(images)  # batch norm's figures are no more what they began with
    net = branched.prune(labels).eval()
    again = load_grouped(save_grouped(tmp_path / "m.safetensors", net))
    assert torch.equal(again(images), net(images))
    assert (again.labels, again.branch_ids, again.layout) == (net.labels, net.branch_ids, LAYOUT)
    assert str(again) == str(net)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch": {"kind": "Linear", "options": {}}}, "kind must be one of MLP, .*; got 'Linear'"),
        ({"branch": {"kind": "ResNet18", "options": {"width": 3}}}, "must be .*; the file holds"),
        ({"branch": {"kind": "ResNet18", "options": {"depth": 3}}}, "depth"),
        ({"branch": {"kind": "MLP", "options": {"in_features": 1, "hidden": [1] * 2000}}}, "at most 1000 layers"),
        ({"branch": None}, "does not describe"),
        ({"branch_ids": list(range(10**5))}, "describes 100000 branches"),
        ({"labels": [0, 0, 0, 0]}, "every branch a task"),
        ({"trunk": {"kind": "CelebAStem", "options": {}}}, "trunk.0.weight must be .*; the file holds none"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_descriptions_of_other_image_networks_build_nothing(tmp_path, changes, message):
    path = save_grouped(tmp_path / "m.safetensors", BranchedNet(lambda: ResNet18(3, 2), 2, LAYOUT).prune([1, 0, 1, 0]))
    rewritten(path, **changes)
    with pytest.raises(FileFormatError, match=message):
        load_grouped(path)


def test_the_metadata_is_json_that_says_how_to_build_it(tmp_path):
    path = save_grouped(tmp_path / "m.safetensors", pruned([2, 0, 2, 0]))
    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["net"])
    assert described["layout"] == LAYOUT.to_dict()
    assert (described["in_features"], described["trunk"], described["hidden"]) == (6, None, [5, 4])
    assert (described["labels"], described["branch_ids"]) == ([1, 0, 1, 0], [0, 2])


def test_equal_networks_are_equal_files(tmp_path):
    net = pruned([2, 0, 2, 0])
    found = {save_grouped(tmp_path / f"{number}.safetensors", net).read_bytes() for number in range(6)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (BranchedNet(lambda: nn.Sequential(nn.Linear(3, 2)), 2, LAYOUT, 2), "branches.*is a Sequential"),
        (BranchedNet(lambda: MLP(3, (4,)), 2, LAYOUT, trunk=nn.Flatten()), "trunk is a Flatten"),
        (BranchedNet(lambda: MLP(3, (4,)), 2, LAYOUT, head={"b": nn.Linear}), "'b' has one of its own"),
    ],
    ids=["somebody's own", "another trunk", "a head of its own"],
)
def test_networks_of_other_parts_are_refused(tmp_path, net, message):
    with pytest.raises(InvalidArgumentError, match=message):
        save_grouped(tmp_path / "m.safetensors", net.prune([0, 0, 1, 1]))
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="no network at"):
        load_grouped(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(FileFormatError, match="truncated or no safetensors"):
        load_grouped(path)
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match=r"is no pymtg\.grouped_net"):
        load_grouped(path)
    metadata = {"format": "pymtg.grouped_net", "version": "1"}
    for described in ("{}", "[]", "nonsense", json.dumps({"layout": LAYOUT.to_dict(), "labels": [9]})):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata | {"net": described})
        with pytest.raises(FileFormatError, match="does not describe a network"):
            load_grouped(path)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = save_grouped(tmp_path / "m.safetensors", pruned([0, 1, 2, 0]))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file({"branches.0.layers.0.weight": torch.ones(2)}, path, metadata)
    with pytest.raises(FileFormatError, match="does not describe a network"):
        load_grouped(path)


def rewritten(path, **changes):
    """Write the file again with another description."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["net"]) | changes
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata | {"net": json.dumps(described)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_ids": list(range(10**6))}, "describes 6000001 tensors; the file holds 13"),
        ({"hidden": [10**10, 4]}, r"branches\.0\.layers\.0\.weight must be \[10000000000, 6\]; .* holds \[5, 6\]"),
        ({"hidden": [10**30, 4]}, r"branches\.0\.layers\.0\.weight must be"),
        ({"in_features": 10**12}, r"must be \[5, 1000000000000\]"),
        ({"trunk": [2, 10**10]}, "describes 17 tensors"),
        (
            {"layout": TaskLayout(LAYOUT.names, [1, 10**9, 2, 1]).to_dict()},
            r"linear\.0\.weight must be \[1000000001, 4\]",
        ),
        (
            {"layout": LAYOUT.to_dict() | {"num_classes": [1, 10**10, 2, 1]}},
            "num_classes must be at most 2147483647; task 'b' has 10000000000",
        ),
        ({"dropout": [0.0, 0.5]}, r"branches\.0\.layers\.3\.weight must be \[4, 5\]; the file holds none"),
        ({"dropout": [0.0, float("nan")]}, "dropout must lie in"),
        ({"dropout": [0.0]}, "dropout must be two numbers"),
        ({"labels": [0, 0, 0, 0]}, "every branch a task"),
        ({"labels": [0.0, 1, 0, 1]}, r"labels\[0\] must be an integer; got 0.0"),
        ({"labels": [1, 0, 1]}, "every task a branch"),
        ({"labels": [0, 0, 1, 1]}, "must be of the labels"),  # as many columns as before: only the state tells
        ({"branch_ids": "ab"}, "branch_ids must be a list"),
        ({"branch_ids": [0.5, 1]}, "branch_ids must be a list"),
        ({"hidden": "54"}, "hidden must be a sequence"),
        ({"hidden": [5.0, 4]}, r"hidden\[0\] must be an integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_descriptions_that_do_not_fit_the_tensors_build_nothing(tmp_path, changes, message):
    net = BranchedNet(lambda: MLP(6, (5, 4)), 3, TaskLayout(["a", "b", "c", "d"], [2, 3, 1, 2])).prune([2, 0, 2, 0])
    path = save_grouped(tmp_path / "m.safetensors", net)
    rewritten(path, **changes)
    with pytest.raises(FileFormatError, match=f"does not describe a network: .*{message}"):
        load_grouped(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(tmp_path, dtype, generator):
    net = pruned([2, 0, 2, 1], MLP(6, (7,))).to(dtype)
    again = load_grouped(save_grouped(tmp_path / "m.safetensors", net))
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    inputs = torch.randn(9, 6, generator=generator).to(dtype)
    assert torch.equal(again(inputs), net(inputs))


def test_only_pruned_networks_are_saved(tmp_path):
    with pytest.raises(InvalidTypeError, match="net must be a GroupedNet, as prune returns; got BranchedNet"):
        save_grouped(tmp_path / "m.safetensors", BranchedNet(lambda: MLP(6, (4,)), 2, LAYOUT))
    assert not list(tmp_path.iterdir())
