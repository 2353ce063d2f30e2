"""The CUDA sources compile without a warning and keep everything in registers; the module needs no driver.

Nothing here runs on a device: see tests/test_cuda_emulated.py for what the kernels compute and tests/gpu for the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent / "kernels" / "cuda"
NVCC = shutil.which("nvcc")
ARCHS = ("80", "90")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def test_built_and_imports_without_a_driver() -> None:
    """With PYMTG_CUDA=AUTO a toolkit that does not work is passed over in silence; here it shows."""
    code = "import pymtg._cuda as c; print(c.archs, c.tiling([0, 1, 3, 8], 256)[1:3])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("80-real 90 ")


def report(folder: Path) -> str:
    """Return what ptxas says about every kernel: from pytest's cache, if nothing has changed since."""
    assert NVCC is not None
    version = subprocess.run([NVCC, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(b"".join([version, *(path.read_bytes() for path in sorted(KERNELS.iterdir()))])).hexdigest()
    kept = folder / f"ptxas-{digest[:16]}.txt"
    if not kept.exists():
        for old in folder.glob("ptxas-*"):
            old.unlink()
        kept.write_text(compiled(NVCC, folder / "cross_entropy.o"))
    return kept.read_text()


def compiled(nvcc: str, output: Path) -> str:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command = [nvcc, "-std=c++17", "-O3", *targets, "-Xptxas=-v", "--Werror=all-warnings"]
    command += ["-Xcompiler=-fPIC,-Wall,-Wextra", "-c", str(KERNELS / "cross_entropy.cu"), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_registers_suffice(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        report(pytestconfig.cache.mkdir("cuda")),
        re.DOTALL,
    )
    kernels = re.findall(r"PYMTG_GLOBAL void PYMTG_BOUNDS\([^)]*\) (\w+)\(", "".join(map(Path.read_text, headers())))
    assert len(kernels) >= 4
    for arch in ARCHS:
        names = [name for name, target, *_ in found if target == arch]
        assert all(any(kernel in name for name in names) for kernel in kernels), names
    assert [entry for entry in found if entry[2:] != ("0", "0", "0")] == []


def headers() -> list[Path]:
    return sorted(KERNELS.glob("*.cuh"))
