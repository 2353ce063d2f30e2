"""Pruned networks as files: the weights of a :class:`GroupedNet` and what it takes to build it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pymtg._files import replacing
from pymtg._tensor_files import save_tensors
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError, PymtgError
from pymtg.nets._part_files import built_part, described_part
from pymtg.nets._positions import checked_positions
from pymtg.nets.backbones import MLP, checked_dropout, checked_size, checked_sizes
from pymtg.nets.grouped import GroupedNet
from pymtg.tasks import TaskLayout

__all__ = ["load_grouped", "save_grouped"]

_FORMAT = "pymtg.grouped_net"
_VERSION = "1"


def save_grouped(path: str | os.PathLike[str], net: GroupedNet) -> Path:
    """Write a pruned network of pymtg's own backbones to a safetensors file, atomically.

    Its metadata holds, as JSON under ``net``, from what :func:`load_grouped` builds the network: ``layout``, ``labels``
    and ``branch_ids``; for fully connected networks ``in_features``, ``trunk`` (hidden widths or None), ``hidden`` and
    ``dropout``, for others ``trunk`` (or None) and ``branch`` as ``{"kind": class, "options": its arguments}``.

    Raises
    ------
    InvalidTypeError
        If `net` is no :class:`GroupedNet`.
    InvalidArgumentError
        If trunk or branches are other modules, or a task has a head of its own: save the ``state_dict`` of such a
        network yourself.
    OSError
        If the file cannot be written.
    """
    if not isinstance(net, GroupedNet):
        raise InvalidTypeError(f"net must be a GroupedNet, as prune returns; got {type(net).__name__}")
    metadata = {"format": _FORMAT, "version": _VERSION, "net": json.dumps(_description(net))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, metadata, "the network", path)
    return Path(path)


def load_grouped(path: str | os.PathLike[str]) -> GroupedNet:
    """Build the network that :func:`save_grouped` wrote, on the CPU, in eval mode, with weights of the saved dtype.

    The description is compared with the tensors' names and shapes before anything is built, so that a file costs no
    more than its size.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is truncated or something else, or its tensors are not those of the network that it describes.
    """
    import safetensors
    import safetensors.torch

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no network at {os.fspath(path)}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what safetensors returns may lie in the file itself, which others may overwrite.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{os.fspath(path)} is truncated or no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
        raise FileFormatError(f"{os.fspath(path)} is no {_FORMAT} of version {_VERSION}")
    try:
        description = json.loads(metadata["net"])
        others = "branch" in description  # than fully connected layers
        net = _build_parts(description, tensors) if others else _build(_checked(description, tensors))
        net.load_state_dict(tensors, assign=True)
    except (PymtgError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{os.fspath(path)} does not describe a network: {error}") from error
    return net.eval()


def _description(net: GroupedNet) -> dict[str, Any]:
    if net.custom_names:
        raise InvalidArgumentError(f"net must have linear heads only; {net.custom_names[0]!r} has one of its own")
    shared = {"layout": net.layout.to_dict(), "labels": list(net.labels), "branch_ids": list(net.branch_ids)}
    if any(type(part) is not MLP for part in (*net.branches, *([] if net.trunk is None else [net.trunk]))):
        return shared | _parts(net)
    trunk = None if net.trunk is None else _mlp(net.trunk)
    branches = [_mlp(branch) for branch in net.branches]
    _check_alike(branches)
    return {
        **shared,
        "in_features": (trunk or branches[0])["in_features"],
        "trunk": None if trunk is None else trunk["hidden"],
        "hidden": branches[0]["hidden"],
        "dropout": [0.0 if trunk is None else trunk["dropout"], branches[0]["dropout"]],
    }


def _parts(net: GroupedNet) -> dict[str, Any]:
    """Describe a network whose parts are not all fully connected."""
    branches = [described_part(branch, f"branches[{k}]") for k, branch in enumerate(net.branches)]
    _check_alike(branches)
    return {"trunk": None if net.trunk is None else described_part(net.trunk, "trunk"), "branch": branches[0]}


def _check_alike(branches: Sequence[Mapping[str, Any]]) -> None:
    if any(branch != branches[0] for branch in branches):
        raise InvalidArgumentError("net must have branches of one architecture")


def _mlp(module: nn.Module) -> dict[str, Any]:
    options: dict[str, Any] = described_part(module, "part")["options"]
    return options


def _checked(description: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a description whose network has these tensors, by name and shape; allocates nothing that is not there."""
    layout, branch_ids = _checked_branches(description)
    hidden, trunk = checked_sizes(description["hidden"], "hidden"), description["trunk"]
    dropout = description["dropout"]
    if not isinstance(dropout, list) or len(dropout) != 2:
        raise InvalidArgumentError(f"dropout must be two numbers, of trunk and branches; got {dropout!r}")
    trunk = None if trunk is None else checked_sizes(trunk, "trunk")
    count = 1 + 2 * (len(trunk or ()) + len(branch_ids) * (len(hidden) + 1))
    if count != len(tensors):
        raise InvalidArgumentError(f"it describes {count} tensors; the file holds {len(tensors)}")
    labels = _checked_labels(description, layout, len(branch_ids))
    checked = {
        "layout": layout,
        "in_features": checked_size(description["in_features"], "in_features"),
        "trunk": trunk,
        "hidden": hidden,
        "dropout": tuple(checked_dropout(p) for p in dropout),
        "labels": labels,
        "branch_ids": branch_ids,
    }
    _check_shapes(_shapes(checked), tensors)
    return checked


def _checked_branches(description: Any) -> tuple[TaskLayout, list[int]]:
    """Return the layout and the numbers of the branches."""
    layout, branch_ids = TaskLayout.from_dict(description["layout"]), description["branch_ids"]
    if not isinstance(branch_ids, list) or not all(type(k) is int and k >= 0 for k in branch_ids):
        raise InvalidArgumentError("branch_ids must be a list of numbers of branches")
    return layout, branch_ids


def _checked_labels(description: Any, layout: TaskLayout, branches: int) -> list[int]:
    """Return each task's branch."""
    labels = checked_positions(description["labels"], "labels", branches)
    if len(labels) != layout.num_tasks or len(set(labels)) != branches:
        raise InvalidArgumentError(f"labels must give every task a branch and every branch a task; got {labels}")
    return labels


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            got = list(tensors[name].shape) if name in tensors else "none"
            raise InvalidArgumentError(f"{name} must be {list(shape)}; the file holds {got}")


def _build_parts(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GroupedNet:
    """Build a network of described parts on the meta device, which costs no memory, if it has these tensors."""
    layout, branch_ids = _checked_branches(description)
    if len(branch_ids) > len(tensors):
        raise InvalidArgumentError(f"it describes {len(branch_ids)} branches; the file holds {len(tensors)} tensors")
    labels = _checked_labels(description, layout, len(branch_ids))
    columns = _columns(layout, labels, len(branch_ids))
    with torch.device("meta"):
        trunk = None if description["trunk"] is None else built_part(description["trunk"])
        branches = [built_part(description["branch"]) for _ in branch_ids]
        heads = [nn.Linear(int(branches[0].out_features), count) for count in columns]
    net = GroupedNet(layout, labels, branches, heads, {}, trunk, branch_ids)
    _check_shapes({name: _shape(value) for name, value in net.state_dict().items()}, tensors)
    return net


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _shapes(description: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of the described network."""
    width, hidden, trunk = description["in_features"], description["hidden"], description["trunk"]
    dropouts = description["dropout"]
    columns = _columns(description["layout"], description["labels"], len(description["branch_ids"]))
    shapes: dict[str, tuple[int, ...]] = {"_extra_state": (len(description["labels"]),)}
    if trunk is not None:
        shapes |= _mlp_shapes("trunk", width, trunk, dropouts[0])
        width = trunk[-1]
    for k, count in enumerate(columns):
        shapes |= _mlp_shapes(f"branches.{k}", width, hidden, dropouts[1])
        shapes |= {f"linear.{k}.weight": (count, hidden[-1]), f"linear.{k}.bias": (count,)}
    return shapes


def _mlp_shapes(place: str, width: int, hidden: tuple[int, ...], dropout: float) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (before, after) in enumerate(zip((width, *hidden), hidden, strict=False)):
        layer = f"{place}.layers.{i * (3 if dropout else 2)}"  # a ReLU and perhaps dropout follow each
        shapes |= {f"{layer}.weight": (after, before), f"{layer}.bias": (after,)}
    return shapes


def _columns(layout: TaskLayout, labels: Sequence[int], branches: int) -> list[int]:
    """Return per branch how many columns its linear heads have."""
    columns = [0] * branches
    for count, own in zip(layout.num_classes, labels, strict=True):
        columns[own] += count
    return columns


def _build(description: Mapping[str, Any]) -> GroupedNet:
    """Build a checked network on the meta device, for tensors to be assigned."""
    hidden, (trunk_dropout, dropout) = description["hidden"], description["dropout"]
    layout, labels = description["layout"], description["labels"]
    columns = _columns(layout, labels, len(description["branch_ids"]))
    width, trunk = description["in_features"], None
    with torch.device("meta"):
        if description["trunk"] is not None:
            trunk = MLP(width, description["trunk"], trunk_dropout)
            width = trunk.out_features
        branches = [MLP(width, hidden, dropout) for _ in description["branch_ids"]]
        heads = [nn.Linear(hidden[-1], count) for count in columns]
    return GroupedNet(layout, labels, branches, heads, {}, trunk, description["branch_ids"])
