"""Nested Python values with tensors in them as JSON and a flat dictionary of tensors, and back: nothing is pickled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pymtg.errors import InvalidTypeError

__all__ = ["flatten", "unflatten"]


def flatten(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return what JSON can hold of a value, and its tensors on the CPU, by their paths.

    Raises
    ------
    InvalidTypeError
        For anything but tensors, arrays, numbers, text, None, lists, tuples and dictionaries; names the place.
    """
    packer = _Packer()
    return packer.pack(value, ""), packer.tensors


def unflatten(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that :func:`flatten` took apart; its tensors are copies.

    Raises KeyError, TypeError or ValueError if the two do not come from there.
    """
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content].clone()  # in memory of torch's own, aligned as its kernels like it
    if kind == "array":
        name, shape = content
        return tensors[name][: math.prod(shape)].clone().reshape(shape).numpy()
    if kind == "float":
        return float(content)
    if kind in ("list", "tuple"):
        entries = [unflatten(entry, tensors) for entry in content]
        return entries if kind == "list" else tuple(entries)
    if kind in ("dict", "counter"):
        found = {key: unflatten(entry, tensors) for key, entry in content}
        return found if kind == "dict" else Counter(found)
    raise ValueError(f"{kind!r} is no kind of value")


def _padded(array: np.ndarray) -> Tensor:
    """Return an array's numbers as a tensor [2^n], zeros behind them.

    Arrays grow from one checkpoint to the next, and safetensors asks ctypes for a type for every length in bytes, which
    Python never gives back: some 20 kB an epoch if every length is a new one.
    """
    flat = torch.from_numpy(np.ascontiguousarray(array)).reshape(-1)
    numbers = flat.new_zeros(1 << max(len(flat) - 1, 0).bit_length())
    numbers[: len(flat)] = flat
    return numbers


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._stored: set[int] = set()

    def pack(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._add(value, path)}
        if isinstance(value, np.ndarray):
            return {"array": [self._add(_padded(value), path), list(value.shape)]}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.pack(entry, f"{path}.{i}") for i, entry in enumerate(value)]}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        raise InvalidTypeError(
            "a checkpoint must be made of tensors, numbers, text, lists and dictionaries; "
            f"{path.lstrip('.')} is of type {type(value).__name__}"
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise InvalidTypeError(f"a checkpoint's keys must be text or integers; {path.lstrip('.')} has {key!r}")
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[key, self.pack(entry, f"{path}.{key}")] for key, entry in value.items()]}

    def _add(self, value: Tensor, path: str) -> str:
        if value.layout != torch.strided:
            raise InvalidTypeError(f"a checkpoint's tensors must be dense; {path.lstrip('.')} is {value.layout}")
        name = path.lstrip(".")
        tensor = value.detach().cpu().contiguous()
        at = tensor.untyped_storage().data_ptr()
        if at and at in self._stored:  # a safetensors file holds no two tensors that share memory
            tensor = tensor.clone()
        self._stored.add(at)
        self.tensors[name] = tensor
        return name
