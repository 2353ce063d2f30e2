"""The CUDA kernels under compute-sanitizer: no access out of bounds, no race in shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pymtg import available_backends

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer"),
]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_clean(tool: str) -> None:
    """Every kernel of pymtg._cuda; torch's own are left out, and its allocator, which hides what is beyond a tensor."""
    if "cuda" not in available_backends():
        pytest.skip("pymtg._cuda is not built")
    assert SANITIZER is not None
    script = Path(__file__).with_name("sanitized_steps.py")
    options = ["--kernel-name", "kns=pymtg", "--error-exitcode", "9"]
    if tool == "memcheck":  # torch asks for symbols that a driver need not have: no error of ours
        options += ["--report-api-errors", "no"]
    done = subprocess.run(
        [SANITIZER, "--tool", tool, *options, sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not work on this device")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "steps done" in done.stdout
