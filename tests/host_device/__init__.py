"""A CUDA device in the host's memory, for a torch without CUDA: see ``device.cpp``; :func:`load` brings it to life."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SINCE = (2, 13)
"""The first torch with the inner parts that device.cpp stands in for."""


def why_not() -> str | None:
    """Return why there can be no such device here, None where there can. Does not import torch."""
    if tuple(int(part) for part in version("torch").split(".")[:2]) < SINCE:
        return f"the device is written for torch {'.'.join(map(str, SINCE))} and later"
    if any((_torch() / "lib").glob("libtorch_cuda*")) or any((_torch() / "lib").glob("libtorch_hip*")):
        return "this torch has a device of its own"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11"
    return None if shutil.which("g++") else "no g++"


def is_pinned_torch() -> bool:
    """Whether torch is the one of constraints.txt, for which the device is written."""
    pinned = (HERE.parent.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return f"torch=={version('torch').split('+')[0]}" in {line.split(";")[0].strip() for line in pinned}


def build(cache: Path) -> Path:
    """Return the device's library in a folder, made anew where a source or torch has changed."""
    torch, sources = _torch(), sorted(HERE.glob("*.[ch]pp"))
    text = b"".join(source.read_bytes() for source in sources) + f"{version('torch')} {torch}".encode()
    library = cache / f"host_device-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")  # another process may be at it too
        include, libraries = torch / "include", torch / "lib"
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-Wall"]
        command += ["-Werror"] if os.environ.get("CI") else []
        command += [f"-isystem{include}", f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}"]
        command += [str(HERE / "device.cpp"), "-o", str(partial), f"-L{libraries}"]
        command += ["-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        partial.rename(library)
    return library


def load(library: Path) -> None:
    """Load the device into this process, before anything imports torch: torch asks for its hooks once."""
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from host_device import torch_cuda

    torch_cuda.install()


def _torch() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
