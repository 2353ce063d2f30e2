"""Which backends there are, and which one serves given tensors.

A backend is four functions with the contracts of those of the same names in :mod:`pymtg._reference`, plus the devices
it serves. To add one, add a line to ``_BACKENDS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pymtg import _cpp, _reference
from pymtg.errors import BackendError, InvalidArgumentError

__all__ = ["available_backends", "get_backend", "set_backend"]


@dataclass(frozen=True)
class Backend:
    """The functions of one backend; contracts in :mod:`pymtg._reference`."""

    cross_entropy: Callable[..., tuple[Tensor, Tensor]]
    assigned_cross_entropy: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    record: Callable[..., None]
    scale_gradient: Callable[..., Tensor]
    serves: Callable[[torch.device], bool]


_BACKENDS = {
    "cpp": Backend(
        _cpp.cross_entropy,
        _cpp.assigned_cross_entropy,
        _cpp.record,
        _cpp.scale_gradient,
        lambda device: device.type == "cpu",
    ),
    "reference": Backend(
        _reference.cross_entropy,
        _reference.assigned_cross_entropy,
        _reference.record,
        _reference.scale_gradient,
        lambda device: True,
    ),
}
_AUTO = "auto"
_chosen = _AUTO


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that this installation has, the preferred first."""
    return tuple(_BACKENDS)


def get_backend() -> str:
    """Return the name set by :func:`set_backend` or ``PYMTG_BACKEND``, ``"auto"`` if none was."""
    return _chosen


def set_backend(name: str | None) -> None:
    """Choose the backend of all later calls that name none themselves.

    Parameters
    ----------
    name
        One of :func:`available_backends`, or ``"auto"`` (also ``None``): the fastest that serves the tensors at hand.
        The environment variable ``PYMTG_BACKEND``, read when pymtg is first used, sets the same.

    Raises
    ------
    InvalidArgumentError
        If there is no such backend.
    """
    global _chosen
    _chosen = _checked(_AUTO if name is None else name, "backend")


def _checked(name: str, what: str) -> str:
    if name != _AUTO and name not in _BACKENDS:
        known = ", ".join([_AUTO, *_BACKENDS])
        raise InvalidArgumentError(f"{what} must be one of {known}; got {name!r}")
    return name


def choose_backend(requested: str | None, device: torch.device) -> str:
    """Return the name of the backend that serves tensors on `device`.

    Raises InvalidArgumentError for an unknown name, BackendError if the one asked for does not serve the device.
    """
    name = _chosen if requested is None else _checked(requested, "backend")
    if name == _AUTO:
        return next(name for name, backend in _BACKENDS.items() if backend.serves(device))
    if not _BACKENDS[name].serves(device):
        raise BackendError(
            f"backend {name!r} does not serve tensors on {device}; leave backend out to choose by device"
        )
    return name


def backend_named(name: str) -> Backend:
    """Return the backend of that name."""
    return _BACKENDS[name]


set_backend(_checked(os.environ.get("PYMTG_BACKEND") or _AUTO, "environment variable PYMTG_BACKEND"))
