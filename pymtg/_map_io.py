"""Data maps as files and as state dictionaries: what is in them, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pymtg import _words
from pymtg._files import replacing
from pymtg._map_state import empty_state
from pymtg._reference import MapState
from pymtg._snapshot import Snapshot
from pymtg._snapshot_stores import KINDS
from pymtg._tensor_files import save_tensors
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError, PymtgError
from pymtg.tasks import TaskLayout

FORMAT = "pymtg.data_map"
VERSION = "1"
VERSION_ELSEWHERE = "2"  # of a map whose snapshots are not in memory: it says where, and may hold a Gram matrix
_SNAPSHOT = re.compile(r"snapshot\.(-?\d+)\.(words|counts)")


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a map's state dictionary to a safetensors file, atomically; equal states give equal bytes."""
    _check_path(path)
    tensors = {name: value.contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    version = VERSION_ELSEWHERE if "snapshots" in plain else VERSION
    metadata = {"format": FORMAT, "version": version, "map": json.dumps(plain)}
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, metadata, "the data map", path)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` wrote; FileFormatError for anything else."""
    import safetensors
    from safetensors import safe_open

    _check_path(path)
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
        keys = ["layout", "ddof"] + ["snapshots"] * (metadata["version"] == VERSION_ELSEWHERE)
        if not isinstance(plain, dict) or set(plain) != set(keys):
            raise InvalidArgumentError(f"its metadata must hold {' and '.join(keys)}, and nothing else")
        if plain.get("snapshots", "memory") not in KINDS:
            raise InvalidArgumentError(f"its snapshots must be one of {', '.join(KINDS)}; got {plain['snapshots']!r}")
        state |= plain
        layout = TaskLayout.from_dict(state["layout"])
        _check_consistent(state, layout)
    except (KeyError, TypeError, ValueError, PymtgError) as error:
        raise FileFormatError(f"{os.fspath(path)} is a damaged data map: {error}") from error
    return state


def _check_path(path: object) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"path must name a file; got {path!r} of type {type(path).__name__}")


def _check_header(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise FileFormatError(
            f"{os.fspath(path)} is no data map: its format is {metadata.get('format')!r}, not {FORMAT!r}"
        )
    version = metadata.get("version")
    if version not in (VERSION, VERSION_ELSEWHERE):
        raise FileFormatError(
            f"{os.fspath(path)} is a data map of version {version!r}; "
            f"this pymtg reads versions {VERSION!r} and {VERSION_ELSEWHERE!r}"
        )


def _check_consistent(state: Mapping[str, Any], layout: TaskLayout) -> None:
    words, counts = state["words"], state["counts"]
    samples, _, tasks = words.shape
    expected = empty_state(samples, tasks, torch.device("meta"), missing=counts.dim() == 2)
    if samples < 1 or tasks != layout.num_tasks or state["ddof"] not in (0, 1):
        raise InvalidArgumentError(f"words {list(words.shape)} and ddof {state['ddof']!r} do not fit its layout")
    snapshots, gram = checked_state(state, expected, layout, state["ddof"])
    for epoch, words_then, counts_then in [(None, words, counts), *snapshots]:
        where = "its state" if epoch is None else f"its snapshot of epoch {epoch}"
        for part in Snapshot(0, words_then, counts_then, 0).parts():
            if bool((part.counts < 0).any()) or max(float(v.max()) for v in _words.unpack_values(part.words)) > 1:
                raise InvalidArgumentError(f"{where} holds negative counts, or means or deviations above 1")
    if gram is not None and not bool(torch.isfinite(gram[1]).all()):
        raise InvalidArgumentError("its Gram matrix holds NaN or infinity")


def checked_state(
    state: Mapping[str, Any], expected: MapState, layout: TaskLayout, ddof: int
) -> tuple[list[tuple[int, Tensor, Tensor]], tuple[list[int], Tensor] | None]:
    """Raise unless `state` fits a map with these tensors.

    Returns its snapshots (epoch, words, counts) in order, and the epochs and the Gram matrix of those that it forgot.
    """
    if not isinstance(state, Mapping):
        raise InvalidTypeError(f"state must be what state_dict() returned; got {type(state).__name__}")
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
    gram = _checked_gram(state, layout.num_tasks)
    if found and gram is not None:
        raise InvalidArgumentError("state must hold snapshots or their Gram matrix, not both")
    return [(epoch, found[epoch]["words"], found[epoch]["counts"]) for epoch in sorted(found)], gram


def _checked_gram(state: Mapping[str, Any], num_tasks: int) -> tuple[list[int], Tensor] | None:
    if "gram" not in state and "gram.epochs" not in state:
        return None
    if "gram" not in state or "gram.epochs" not in state:
        raise InvalidArgumentError("state must hold both gram and gram.epochs; it lacks one")
    _check_tensor(state["gram"], "gram", torch.empty((num_tasks, num_tasks), dtype=torch.float64, device="meta"))
    given = state["gram.epochs"]
    count = given.numel() if isinstance(given, Tensor) else 1
    _check_tensor(given, "gram.epochs", torch.empty(max(count, 1), dtype=torch.int64, device="meta"))
    epochs: list[int] = given.tolist()
    if any(later <= earlier for earlier, later in pairwise(epochs)):
        raise InvalidArgumentError(f"state['gram.epochs'] must rise; got {epochs}")
    return epochs, state["gram"]


def _check_tensor(value: Any, name: str, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgumentError(f"state[{name!r}] must be {like.dtype} {list(like.shape)}; got {got}")
