"""What is written for a GPU, on a CUDA device that is pretended in the host's memory (``host_device``).

``tests/gpu`` with both sets of kernels, the GPU's benchmarks in tiny sizes, and what would take a GPU by itself if one
were there: trainers, commands, the documentation's code. In processes of their own, which have it from the start.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import host_device
import pytest

from pymtg._backend import triton_suffices

HERE = Path(__file__).parent
LONG = bool(os.environ.get("PYMTG_TEST_LONG"))
WHY_NOT = host_device.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# No memory is as large, and nothing is there to sanitize.
NOT_THERE = "addresses or test_clean"
# In every run: what test_cuda_emulated and triton_interpreted do not have; with PYMTG_TEST_LONG all.
GRID = "test_layouts or test_dtypes"
QUICK = "(graph_capture and not linear_head) or no_host_read or three_launches or faults or snapshots or trainers"
QUICK += " or new_layout or dropped"
SLOW = "sorted or many or twenty or streams"  # minutes, where they are interpreted
TRAINING = ["test_trainers_stg*.py", "test_trainers_dmtg*.py", "test_trainers_regression.py", "test_hooks*.py"]
TRAINING += ["test_readme.py", "test_docs.py", "test_examples.py", "test_profile.py"]
TRAINING += ["test_integrations_lightning*.py", "test_integrations_huggingface*.py"]
COMMANDS = ["test_cli.py", "test_cli_dmtg.py"] if LONG else []
# DataParallel copies between devices of CUDA's own; a page tries Triton's compiler on the device.
NO_DEVICE = ["tests/test_hooks_forwards.py::test_a_replica_is_refused_and_a_wrapper_works"]
NO_DEVICE += ["tests/test_docs.py::test_page_runs[installing.md]"]


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = getattr(pytestconfig, "cache", None)  # none where pytest is to keep nothing
    folder = tmp_path_factory.mktemp("host_device") if kept is None else kept.mkdir("host_device")
    try:
        host_device.build(folder)
    except subprocess.CalledProcessError as error:
        if host_device.is_pinned_torch():
            raise
        pytest.skip(f"the device is not written for this torch: {error.stderr[-500:]}")
    return folder


def passed(cache: Path, *arguments: str, interpreted: bool = False) -> int:
    """Run tests where the device is; return how many passed, none of them failing."""
    outer = ("PYTEST_", "PYMTG_BACKEND")  # what this run of the tests, or its caller, has chosen for itself
    env = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    env |= {"PYMTG_HOST_DEVICE": str(cache), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}
    if interpreted:
        env |= {"TRITON_INTERPRET": "1"}
    options = ["-q", "--tb=short", "-p", "host_device.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=HERE,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


def test_the_device_itself(cache: Path) -> None:
    assert passed(cache, "host_device/checks.py") == 19


@pytest.mark.timeout(600)
def test_gpu_tests_with_cuda_kernels_and_plain_torch(cache: Path) -> None:
    left = f"triton or {NOT_THERE}" if LONG else f"triton or {NOT_THERE} or {GRID}"
    assert passed(cache, "gpu", "-k", f"not ({left})") > 35


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not triton_suffices(), reason="no Triton here, or too old a one")
def test_gpu_tests_with_triton_and_the_benchmarks(cache: Path) -> None:
    chosen = f"not ({SLOW} or {NOT_THERE})" if LONG else f"({QUICK}) and not ({SLOW})"
    files = ["gpu", "test_gpu_benchmarks.py"]
    assert passed(cache, *files, "-k", f"(triton and {chosen}) or dry_run", interpreted=True) >= 25


@pytest.mark.timeout(1500)
def test_what_takes_a_gpu_by_itself(cache: Path) -> None:
    files = sorted(str(path.relative_to(HERE)) for name in TRAINING + COMMANDS for path in HERE.glob(name))
    without = [word for name in NO_DEVICE for word in ("--deselect", name)]
    assert passed(cache, *files, *without) > 400
