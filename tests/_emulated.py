"""Builds ``kernels/cuda`` with the host compiler, as they stand, over ``tests/emulator``: where there is no device, the
only way to run them. The module stays in pytest's cache and is built again when a source changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
KERNELS, EMULATOR = ROOT / "kernels" / "cuda", ROOT / "tests" / "emulator"
_FLAGS = ["-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unknown-pragmas"]
_FLAGS += ["-fvisibility=hidden", "-DPYMTG_EMULATED", "-DPYMTG_CUDA_MODULE=cuda_emulated"]
_FLAGS += ['-DPYMTG_CUDA_ARCHS="emulated"', f"-I{EMULATOR}", f"-I{KERNELS}"]


def compiler() -> str | None:
    """Return the C++ compiler that runs the emulation: its contexts are Linux's."""
    return shutil.which("g++") or shutil.which("clang++")


def emulated_kernels(cache: Path) -> ModuleType:
    """Return the kernels as a module with the functions of ``pymtg._cuda``, for CPU tensors."""
    sources = sorted([*KERNELS.iterdir(), *EMULATOR.iterdir()])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    built = cache / f"cuda_emulated-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # another process may be at it too
            _build(Path(folder), built)
    spec = importlib.util.spec_from_file_location("cuda_emulated", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(folder: Path, built: Path) -> None:
    import pybind11

    chosen = compiler()
    assert chosen is not None
    includes = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    objects = []
    for name, level in (("cross_entropy.cu", "-O1"), ("tiling.cpp", "-O1"), ("bindings.cpp", "-O0")):
        objects.append(folder / f"{name}.o")
        command = [chosen, *_FLAGS, *includes, level, "-x", "c++", "-c", KERNELS / name, "-o", objects[-1]]
        subprocess.run([str(part) for part in command], check=True)
    partial = folder / built.name
    subprocess.run([chosen, "-shared", *map(str, objects), "-o", str(partial)], check=True)
    partial.rename(built)
