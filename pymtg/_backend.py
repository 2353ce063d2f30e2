"""Which backends there are, and which one serves given tensors.

A backend is four functions with the contracts of those of the same names in :mod:`pymtg._reference`, plus the devices
it serves. To add one, add a line to ``_BACKENDS`` and a place in the order of :mod:`pymtg._dispatch`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pymtg import _cpp, _reference
from pymtg._dispatch import preferred
from pymtg.errors import BackendError, InvalidArgumentError

__all__ = ["available_backends", "get_backend", "set_backend"]

_LOWEST_TRITON = (3, 5)  # has constexpr_function


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Backend:
    """The functions of one backend; contracts in :mod:`pymtg._reference`."""

    cross_entropy: Callable[..., tuple[Tensor, Tensor]]
    assigned_cross_entropy: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    record: Callable[..., None]
    scale_gradient: Callable[..., Tensor]
    serves: Callable[[torch.device], bool]
    gradient: Callable[..., Tensor] | None = None
    """Given where the backward pass recomputes the gradient: ``cross_entropy`` then leaves what this needs, ``[T]``."""
    scale_gradient_: Callable[..., None] | None = None
    """In place; given where that costs next to nothing for an upstream gradient of ones, which the host cannot see."""
    defers: bool = False
    """Whether bad values are noted (:mod:`pymtg._faults`) and not raised in the call."""
    available: Callable[[], bool] = _always
    """Whether it can be used in this process at all."""


def _late(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a module that is imported when it is first called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **options)

    return call


def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has_triton() -> bool:
    return (_interpreted() or torch.cuda.is_available()) and triton_suffices()


@functools.cache
def triton_suffices() -> bool:
    """Return whether the kernels compile with the Triton that is here: torch before 2.9 brings one that is too old."""
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in found.split(".")[:2]) >= _LOWEST_TRITON


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("pymtg._cuda") is not None


_BACKENDS = {
    "cpp": Backend(
        _cpp.cross_entropy,
        _cpp.assigned_cross_entropy,
        _cpp.record,
        _cpp.scale_gradient,
        lambda device: device.type == "cpu",
    ),
    "triton": Backend(
        _late("pymtg._triton", "cross_entropy"),
        _late("pymtg._triton", "assigned_cross_entropy"),
        _late("pymtg._triton", "record"),
        _reference.scale_gradient,  # for gradients that were not recomputed: never in a step
        lambda device: device.type == "cuda" or (device.type == "cpu" and _interpreted()),
        gradient=_late("pymtg._triton", "gradient"),
        defers=True,
        available=_has_triton,
    ),
    "cuda": Backend(
        _late("pymtg._cuda_backend", "cross_entropy"),
        _late("pymtg._cuda_backend", "assigned_cross_entropy"),
        _late("pymtg._cuda_backend", "record"),
        _late("pymtg._cuda_backend", "scale_gradient"),
        lambda device: device.type == "cuda",
        scale_gradient_=_late("pymtg._cuda_backend", "scale_gradient_"),
        defers=True,
        available=_has_cuda_kernels,
    ),
    "reference": Backend(
        _reference.cross_entropy,
        _reference.assigned_cross_entropy,
        _reference.record,
        _reference.scale_gradient,
        lambda device: True,
    ),
}
# Found out once: torch.compile traces through the choice, and every step makes it.
_AVAILABLE = tuple(name for name, backend in _BACKENDS.items() if backend.available())
_AUTO = "auto"
_chosen = _AUTO


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can be used here: that are installed, and whose device is there."""
    return _AVAILABLE


def get_backend() -> str:
    """Return the name set by :func:`set_backend` or ``PYMTG_BACKEND``, ``"auto"`` if none was."""
    return _chosen


def set_backend(name: str | None) -> None:
    """Choose the backend of all later calls that name none themselves.

    Parameters
    ----------
    name
        One of :func:`available_backends`, or ``"auto"`` (also ``None``): by the tensors' device,
        as :mod:`pymtg._dispatch` says.
        The environment variable ``PYMTG_BACKEND``, read when pymtg is first used, sets the same.

    Raises
    ------
    InvalidArgumentError
        If there is no such backend.
    BackendError
        If it cannot be used here: a package or a device is not there.
    """
    global _chosen
    _chosen = _checked(_AUTO if name is None else name, "backend")


def _checked(name: str, what: str) -> str:
    if name == _AUTO or name in _AVAILABLE:
        return name
    known = ", ".join([_AUTO, *_AVAILABLE])
    if name in _BACKENDS:
        raise BackendError(f"{what} must be one of {known}; {name!r} needs a device or a package that is not here")
    raise InvalidArgumentError(f"{what} must be one of {known}; got {name!r}")


def choose_backend(requested: str | None, device: torch.device) -> str:
    """Return the name of the backend that serves tensors on `device`.

    Raises InvalidArgumentError for an unknown name, BackendError if the one asked for does not serve the device or
    cannot be used here.
    """
    name = _chosen if requested is None else _checked(requested, "backend")
    if name == _AUTO:
        return next(name for name in preferred(device.type) if name in _AVAILABLE)
    if not _BACKENDS[name].serves(device):
        raise BackendError(
            f"backend {name!r} does not serve tensors on {device}; leave backend out to choose by device"
        )
    return name


def backend_named(name: str) -> Backend:
    """Return the backend of that name."""
    return _BACKENDS[name]


def backend_at_work(name: str, device: torch.device) -> Backend:
    """Return the backend of that name; BackendError if it reads values of a device whose work is being captured."""
    backend = _BACKENDS[name]
    if device.type == "cuda" and not backend.defers and torch.cuda.is_current_stream_capturing():
        raise BackendError(
            f"backend {name!r} reads values of the device, which a CUDA graph cannot hold, that of "
            "torch.compile(mode='reduce-overhead') neither; backend='triton' or 'cuda' can be captured"
        )
    return backend


set_backend(_checked(os.environ.get("PYMTG_BACKEND") or _AUTO, "environment variable PYMTG_BACKEND"))
