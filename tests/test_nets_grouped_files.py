"""A pruned network that is written and built again is the same network."""

from __future__ import annotations

import json

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from pymtg import TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError
from pymtg.nets import MLP, BranchedNet, ConvNet, load_grouped, save_grouped

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


def test_the_metadata_is_json_that_says_how_to_build_it(tmp_path):
    path = save_grouped(tmp_path / "m.safetensors", pruned([2, 0, 2, 0]))
    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["net"])
    assert described["layout"] == LAYOUT.to_dict()
    assert (described["in_features"], described["trunk"], described["hidden"]) == (6, None, [5, 4])
    assert (described["labels"], described["branch_ids"]) == ([1, 0, 1, 0], [0, 2])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (BranchedNet(lambda: ConvNet(1, (2,)), 2, LAYOUT), "branches.*ConvNet"),
        (BranchedNet(lambda: MLP(3, (4,)), 2, LAYOUT, trunk=nn.Flatten()), "trunk is a Flatten"),
        (BranchedNet(lambda: MLP(3, (4,)), 2, LAYOUT, head={"b": nn.Linear}), "'b' has one of its own"),
    ],
    ids=["convolutions", "another trunk", "a head of its own"],
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
