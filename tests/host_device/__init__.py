"""A CUDA device in the host's memory, for a torch without CUDA: see ``device.cpp``; :func:`load` brings it to life."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from importlib.metadata import files, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SINCE = (2, 13)
"""The first torch with the inner parts that device.cpp stands in for."""


def why_not() -> str | None:
    """Return why there can be no such device here, None where there can. Does not import torch."""
    if tuple(int(part) for part in version("torch").split(".")[:2]) < SINCE:
        return f"the device is written for torch {'.'.join(map(str, SINCE))} and later"
    if any(path.name.startswith("libtorch_cuda.") for path in files("torch") or ()):
        return "this torch has CUDA of its own"
    return None if shutil.which("g++") else "no g++"


def build(cache: Path) -> Path:
    """Return the device's library in a folder, made anew where a source or torch has changed."""
    sources = sorted(HERE.glob("*.[ch]pp"))
    text = b"".join(source.read_bytes() for source in sources) + version("torch").encode()
    library = cache / f"host_device-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch, partial = _torch(), library.with_suffix(f".{os.getpid()}")  # another process may be at it too
        include, libraries = torch / "include", torch / "lib"
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
        command += [f"-isystem{include}", f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}"]
        command += [str(HERE / "device.cpp"), "-o", str(partial), f"-L{libraries}"]
        command += ["-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"]
        subprocess.run(command, check=True)
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
