"""Triton's kernels on a machine without a GPU: by its interpreter, and through its compiler to machine code.

The interpreter does not see what only the compiler refuses; the compiler runs nothing. ``tests/gpu`` has the rest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pymtg import TaskLayout
from pymtg._backend import triton_suffices

pytestmark = [
    pytest.mark.skipif(not triton_suffices(), reason="no Triton here, or too old a one"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process"),
    pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning"),  # Triton's own compiler, from Python 3.13 on
]
LONG = bool(os.environ.get("PYMTG_TEST_LONG"))
HERE = Path(__file__).parent
LAYOUTS = {
    "ones": [1] * 600,
    "tens": [10] * 100,
    "wide": [1500],
    "ragged": [1, 3, 1, 30, 2, 2],
}
FEW = ("tens", "ragged")
VERSION = tuple(int(part) for part in version("triton").split(".")[:2]) if triton_suffices() else ()
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])


@pytest.mark.timeout(1500)
@pytest.mark.skipif(VERSION < (3, 7) and NUMPY >= (2, 4), reason="Triton's interpreter knows NumPy 2.4 since 3.7")
def test_interpreted() -> None:
    """A process of its own: Triton reads the variable when it is imported."""
    theirs = ["-W", "ignore:Conversion of an array:DeprecationWarning"] if VERSION < (3, 7) else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *theirs, "triton_interpreted"],
        cwd=HERE,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 80


def test_not_imported_without_a_device() -> None:
    code = (
        "import sys, torch, pymtg\n"
        "layout = pymtg.TaskLayout.binary(['a'])\n"
        "pymtg.MultiTaskLoss(layout)(torch.zeros(2, 1), torch.ones(2, 1).long())\n"
        "assert not any(name.split('.')[0] == 'triton' for name in sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Launches:
    """The launches that a call makes, kept instead of made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pymtg.kernels.triton import _gradient, _loss, _record

        self.kept: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        for kernel in (_loss.loss_kernel, _gradient.gradient_kernel, _record.finish_kernel, _record.link_kernel):
            monkeypatch.setattr(kernel, "run", self._keeper(kernel))

    def _keeper(self, kernel: Any) -> Any:
        def keep(*arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
            assert len(grid) == 1
            assert 0 < grid[0] < 2**31
            self.kept.append((kernel, arguments, options))

        return keep


def compiled(launch: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> Any:
    """Compile a kernel as Triton would for a launch on such a device: constants, types, divisibility."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    kernel, arguments, options = launch
    names = kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    general = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    values = dict(zip(names, arguments, strict=False)) | {name: options[name] for name in names if name in options}
    assert set(values) == set(names)
    for place, name in enumerate(names):
        value = values[name]
        one = isinstance(value, int) and value == 1 and name not in general
        if name in options or value is None or one:
            signature[name], constants[(place,)] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        if name not in general and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    chosen = {name: options.get(name) for name in ("num_warps", "maxnreg")}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen)


def report_of(kernel: Any, capability: int, folder: Path) -> str:
    """Return what ptxas says of registers and spills."""
    from triton.backends.nvidia.compiler import get_ptxas

    path = folder / "kernel.ptx"
    path.write_text(kernel.asm["ptx"])
    name = re.findall(r"\.target (sm_\w+)", kernel.asm["ptx"])[0]
    done = subprocess.run(
        [get_ptxas(capability).path, "-v", f"--gpu-name={name}", str(path), "-o", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", LAYOUTS if LONG else FEW)
def test_compiles(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Every kernel, as launched for losses, gradient and map: machine code, nothing in local memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    launches = Launches(monkeypatch)
    every_launch(LAYOUTS[name], weighted=name == "ragged", missing=name == "ragged")
    assert len(launches.kept) == 5
    for launch in launches.kept:
        kernel = compiled(launch, capability)
        assert kernel.asm["cubin"]
        report = report_of(kernel, capability, tmp_path)
        # For one program more at a time ptxas may spill a few bytes, with Triton 3.6 a few more; never an array.
        most = 16 if VERSION >= (3, 7) else 48
        (frame, spilled) = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)[0]
        assert int(frame) <= most, report
        assert int(spilled) <= most, report
        (registers,) = re.findall(r"Used (\d+) registers", report)
        assert int(registers) <= 128, "fewer than four programs of 128 threads fit a multiprocessor"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_compiles_for_one_row(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and strides of one are constants to the compiler, and it has to lay out [1, T]: where Triton 3.6 failed."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    launches = Launches(monkeypatch)
    every_launch([2] * 37, weighted=True, missing=True, rows=1, dtype=dtype, target_dtype=torch.uint8)
    for launch in launches.kept:
        assert compiled(launch, 90).asm["cubin"]


def every_launch(
    classes: list[int],
    *,
    weighted: bool,
    missing: bool,
    rows: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    target_dtype: torch.dtype | None = None,
) -> None:
    """Launch loss, map and gradient of a batch, and the map's update alone."""
    from pymtg import DataMap
    from pymtg._triton import cross_entropy, gradient, record

    layout = TaskLayout(
        [f"task{t}" for t in range(len(classes))],
        classes,
        [2.0 if c == 1 else None for c in classes] if weighted else None,
        [[2.0] * c if c > 1 else None for c in classes] if weighted else None,
    )
    logits = torch.zeros(rows, layout.num_logits, dtype=dtype)
    targets = torch.zeros(rows, len(classes), dtype=target_dtype or (torch.long if weighted else torch.uint8))
    ids = torch.arange(rows)
    data_map = DataMap(1000, layout, missing=missing)
    _, left = cross_entropy(logits, targets, layout, state=data_map.state, sample_ids=ids)
    weights = torch.ones(len(classes)) if weighted else None
    gradient(left, logits, targets, torch.ones(()) if weighted else left, weights, layout)
    p = torch.zeros(rows, len(classes))
    record(data_map.state, p, p > 0, p >= 0, ids)
