"""What runs here: versions, processor, threads, backends, devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment", "machine", "versions"]

_PACKAGES = ("pymtg", "torch", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    # Unknown where it is vendored or run from a source tree.
    return {"python": platform.python_version()} | {package: _version(package) or "unknown" for package in _PACKAGES}


def machine() -> dict[str, Any]:
    """Return what a run's seconds, and the last bits of its results, depend on."""
    import torch

    from pymtg import _core

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "instruction_set": _core.isa(),
        "openmp": _core.has_openmp(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
    }


def environment() -> dict[str, Any]:
    """Return versions, machine and backends, JSON-ready."""
    return {"versions": versions(), "machine": machine(), "backends": _backends()}


def _backends() -> dict[str, Any]:
    """Return the backends there are and which one would serve each kind of device here."""
    import torch

    import pymtg
    from pymtg._backend import choose_backend
    from pymtg._cuda_backend import built_kernels

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    default = {f"default_on_{kind}": choose_backend(None, torch.device(kind)) for kind in kinds}
    kernels = built_kernels()
    return {
        "available": list(pymtg.available_backends()),
        "chosen": pymtg.get_backend(),
        **default,
        "cuda_built_for": None if kernels is None else kernels.archs,
        "triton": _version("triton"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    import torch

    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
