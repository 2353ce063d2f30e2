"""Writing results: JSON, text and pictures, each replaced as a whole."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pymtg._files import replacing

__all__ = ["check_writable", "json_ready", "save_bytes", "save_json", "save_text"]


def check_writable(directory: str | os.PathLike[str]) -> Path:
    """Create `directory` where it is missing and prove, by writing a file, that results can be left in it.

    Raises
    ------
    OSError
        What the system said: the path or a parent is a file, no permission, a read-only or full disk.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    # Permission bits say little (root ignores them, network disks invent them): only a write tells.
    with tempfile.NamedTemporaryFile(dir=path, prefix=".pymtg-") as probe:
        probe.write(b"x")
        probe.flush()
    return path


def save_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file under a temporary name beside its place, then rename it there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def save_text(path: str | os.PathLike[str], content: str) -> Path:
    """Write UTF-8 text with :func:`save_bytes`."""
    return save_bytes(path, content.encode())


def save_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Write `content` as indented JSON; NaN and infinities become null, which every JSON reader takes."""
    return save_text(path, json.dumps(json_ready(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def json_ready(value: Any) -> Any:
    """Return `value` made of dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
