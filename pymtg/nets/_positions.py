"""Positions of branches that a caller gives, checked: integers of any kind, and nothing that merely rounds to one."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pymtg.errors import InvalidArgumentError, InvalidTypeError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_position(value: Any, argument: str, branches: int) -> int:
    """Return the position of one branch as an int.

    Raises InvalidTypeError for anything but an integer (Python's, numpy's, a tensor without dimensions), and
    InvalidArgumentError for one outside 0..branches - 1.
    """
    k = _integer(value, argument)
    if not 0 <= k < branches:
        raise InvalidArgumentError(f"{argument} must name branches by position, below {branches}; got {k}")
    return k


def checked_positions(values: Any, argument: str, branches: int) -> list[int]:
    """Return positions as a list of ints; typed errors as :func:`checked_position`, and for other than a row."""
    if isinstance(values, Tensor):
        if values.dtype not in _INTEGERS:
            raise InvalidTypeError(f"{argument} must hold integers; got a tensor of {values.dtype}")
        if values.ndim != 1:
            raise InvalidArgumentError(f"{argument} must have one dimension; got a tensor {list(values.shape)}")
        values = values.tolist()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping, set, frozenset)):
        raise InvalidTypeError(f"{argument} must be a sequence of integers or an integer tensor; got {values!r}")
    each = [_integer(value, f"{argument}[{i}]") for i, value in enumerate(values)]
    return [checked_position(k, argument, branches) for k in each]


def _integer(value: Any, argument: str) -> int:
    if isinstance(value, Tensor) and value.ndim == 0 and value.dtype in _INTEGERS:
        return int(value.item())
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"{argument} must be an integer; got {value!r}")
    return int(value)
