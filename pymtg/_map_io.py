"""Data maps as files and as state dictionaries: what is in them, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pymtg import _words
from pymtg._files import replacing
from pymtg._reference import MapState
from pymtg.errors import FileFormatError, InvalidArgumentError, PymtgError
from pymtg.tasks import TaskLayout

FORMAT = "pymtg.data_map"
VERSION = "1"
_SNAPSHOT = re.compile(r"snapshot\.(-?\d+)\.(words|counts)")


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a map's state dictionary to a safetensors file, atomically."""
    import safetensors
    import safetensors.torch

    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    metadata = {"format": FORMAT, "version": VERSION, "map": json.dumps(plain)}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"the data map could not be written to {os.fspath(path)}: {error}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` wrote; FileFormatError for anything else."""
    import safetensors
    from safetensors import safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no data map at {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_header(path, metadata)
            state: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{os.fspath(path)} is truncated or no safetensors file: {error}") from error
    try:
        plain = json.loads(metadata["map"])
        if not isinstance(plain, dict) or set(plain) != {"layout", "ddof"}:
            raise InvalidArgumentError("its metadata must hold layout and ddof, and nothing else")
        state |= plain
        layout = TaskLayout.from_dict(state["layout"])
        _check_consistent(state, layout)
    except (KeyError, TypeError, ValueError, PymtgError) as error:
        raise FileFormatError(f"{os.fspath(path)} is a damaged data map: {error}") from error
    return state


def _check_header(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise FileFormatError(
            f"{os.fspath(path)} is no data map: its format is {metadata.get('format')!r}, not {FORMAT!r}"
        )
    version = metadata.get("version")
    if version != VERSION:
        raise FileFormatError(
            f"{os.fspath(path)} is a data map of version {version!r}; this pymtg reads version {VERSION!r}"
        )


def _check_consistent(state: Mapping[str, Any], layout: TaskLayout) -> None:
    words, counts = state["words"], state["counts"]
    samples, _, tasks = words.shape
    missing = counts.dim() == 2
    expected = MapState(
        torch.empty((samples, 2, tasks), dtype=torch.int32, device="meta"),
        torch.empty((samples, tasks), dtype=torch.int16, device="meta")
        if missing
        else torch.empty(samples, dtype=torch.int32, device="meta"),
        torch.empty(1, dtype=torch.int64, device="meta"),
    )
    if samples < 1 or tasks != layout.num_tasks or state["ddof"] not in (0, 1):
        raise InvalidArgumentError(f"words {list(words.shape)} and ddof {state['ddof']!r} do not fit its layout")
    for epoch, words_then, counts_then in [
        (None, words, counts),
        *checked_state(state, expected, layout, state["ddof"]),
    ]:
        where = "its state" if epoch is None else f"its snapshot of epoch {epoch}"
        if bool((counts_then < 0).any()) or float(torch.stack(_words.unpack_values(words_then)).max()) > 1:
            raise InvalidArgumentError(f"{where} holds negative counts, or means or deviations above 1")


def checked_state(
    state: Mapping[str, Any], expected: MapState, layout: TaskLayout, ddof: int
) -> list[tuple[int, Tensor, Tensor]]:
    """Raise unless `state` fits a map with these tensors; return its snapshots (epoch, words, counts) in order."""
    needed = {*MapState._fields, "layout", "ddof"}
    absent = sorted(needed - set(state))
    if absent:
        raise InvalidArgumentError(f"state must hold {', '.join(sorted(needed))}; {', '.join(absent)} is absent")
    for name, like in expected._asdict().items():
        _check_tensor(state[name], name, like)
    if TaskLayout.from_dict(state["layout"]) != layout:
        raise InvalidArgumentError("state must be of a map with this layout; its layout differs")
    if state["ddof"] != ddof:
        raise InvalidArgumentError(f"state must be of a map with ddof={ddof}; got {state['ddof']}")
    found: dict[int, dict[str, Tensor]] = {}
    for name in state:
        if match := _SNAPSHOT.fullmatch(name):
            kind = match[2]
            _check_tensor(state[name], name, getattr(expected, kind))
            found.setdefault(int(match[1]), {})[kind] = state[name]
    for epoch, parts in found.items():
        if len(parts) != 2:
            raise InvalidArgumentError(f"state must hold words and counts of each snapshot; epoch {epoch} lacks one")
    return [(epoch, found[epoch]["words"], found[epoch]["counts"]) for epoch in sorted(found)]


def _check_tensor(value: Any, name: str, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgumentError(f"state[{name!r}] must be {like.dtype} {list(like.shape)}; got {got}")
