"""Pruned networks as files: the weights of a :class:`GroupedNet` and what it takes to build it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from pymtg._files import replacing
from pymtg.errors import FileFormatError, InvalidArgumentError, PymtgError
from pymtg.nets.backbones import MLP
from pymtg.nets.grouped import GroupedNet
from pymtg.tasks import TaskLayout

__all__ = ["load_grouped", "save_grouped"]

_FORMAT = "pymtg.grouped_net"
_VERSION = "1"


def save_grouped(path: str | os.PathLike[str], net: GroupedNet) -> Path:
    """Write a pruned network of fully connected layers to a safetensors file, atomically.

    Its metadata holds, as JSON under ``net``: ``layout``, ``in_features``, ``trunk`` (hidden widths or None),
    ``hidden``, ``dropout``, ``labels`` and ``branch_ids``; :func:`load_grouped` builds the network from them.

    Raises
    ------
    InvalidArgumentError
        If trunk or branches are no :class:`MLP`, or a task has a head of its own: save the ``state_dict`` of such a
        network yourself.
    OSError
        If the file cannot be written.
    """
    import safetensors
    import safetensors.torch

    metadata = {"format": _FORMAT, "version": _VERSION, "net": json.dumps(_description(net))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"the network could not be written to {os.fspath(path)}: {error}") from error
    return Path(path)


def load_grouped(path: str | os.PathLike[str]) -> GroupedNet:
    """Build the network that :func:`save_grouped` wrote, on the CPU, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is truncated or something else.
    """
    import safetensors
    import safetensors.torch

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no network at {os.fspath(path)}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{os.fspath(path)} is truncated or no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
        raise FileFormatError(f"{os.fspath(path)} is no {_FORMAT} of version {_VERSION}")
    try:
        net = _build(json.loads(metadata["net"]))
        net.load_state_dict(tensors)
    except (PymtgError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{os.fspath(path)} does not describe a network: {error}") from error
    return net.eval()


def _description(net: GroupedNet) -> dict[str, Any]:
    if net.custom_names:
        raise InvalidArgumentError(f"net must have linear heads only; {net.custom_names[0]!r} has one of its own")
    trunk = None if net.trunk is None else _mlp(net.trunk, "trunk")
    branches = [_mlp(branch, f"branches[{k}]") for k, branch in enumerate(net.branches)]
    if any(branch != branches[0] for branch in branches):
        raise InvalidArgumentError("net must have branches of one architecture")
    return {
        "layout": net.layout.to_dict(),
        "in_features": (trunk or branches[0])["in_features"],
        "trunk": None if trunk is None else trunk["hidden"],
        "hidden": branches[0]["hidden"],
        "dropout": [0.0 if trunk is None else trunk["dropout"], branches[0]["dropout"]],
        "labels": list(net.labels),
        "branch_ids": list(net.branch_ids),
    }


def _mlp(module: nn.Module, place: str) -> dict[str, Any]:
    if type(module) is not MLP:
        raise InvalidArgumentError(f"net must be made of MLPs; its {place} is a {type(module).__name__}")
    linear = [layer for layer in module.layers if isinstance(layer, nn.Linear)]
    dropout = next((layer.p for layer in module.layers if isinstance(layer, nn.Dropout)), 0.0)
    return {
        "in_features": module.in_features,
        "hidden": [layer.out_features for layer in linear],
        "dropout": float(dropout),
    }


def _build(description: dict[str, Any]) -> GroupedNet:
    layout = TaskLayout.from_dict(description["layout"])
    labels, branch_ids, hidden = description["labels"], description["branch_ids"], description["hidden"]
    width, trunk = description["in_features"], None
    if description["trunk"] is not None:
        trunk = MLP(width, description["trunk"], description["dropout"][0])
        width = trunk.out_features
    branches = [MLP(width, hidden, description["dropout"][1]) for _ in branch_ids]
    columns = [
        sum(count for count, own in zip(layout.num_classes, labels, strict=True) if own == k)
        for k in range(len(branches))
    ]
    heads = [nn.Linear(hidden[-1], count) for count in columns]
    return GroupedNet(layout, labels, branches, heads, {}, trunk, branch_ids)
