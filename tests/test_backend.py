"""Which backend and which instruction set serve, and how they are chosen."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from _settings import BACKENDS

import pymtg
from pymtg import TaskLayout
from pymtg._backend import backend_at_work, choose_backend
from pymtg.errors import BackendError, InvalidArgumentError
from pymtg.functional import multitask_cross_entropy

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def _backend_as_before():
    before = pymtg.get_backend()
    yield
    pymtg.set_backend(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_available() -> None:
    on_a_device = {"triton", "cuda"} if torch.cuda.is_available() else set()
    assert set(BACKENDS) <= set(pymtg.available_backends()) <= {*BACKENDS, *on_a_device}
    assert pymtg.available_backends()[-1] == "reference"


def test_what_a_graph_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture is pretended: what reads values of the device is refused by name, what defers is not."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert backend_at_work("triton", cuda).defers
    assert backend_at_work("reference", CPU) is backend_at_work("reference", CPU)
    with pytest.raises(BackendError, match="backend 'reference' reads values of the device, which a CUDA graph cannot"):
        backend_at_work("reference", cuda)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not backend_at_work("reference", cuda).defers


def test_set_and_get() -> None:
    for name in (*BACKENDS, "auto"):
        pymtg.set_backend(name)
        assert pymtg.get_backend() == name
    pymtg.set_backend("reference")
    pymtg.set_backend(None)
    assert pymtg.get_backend() == "auto"


def test_choice() -> None:
    pymtg.set_backend("auto")
    assert choose_backend(None, CPU) == "cpp"
    assert choose_backend(None, META) == "reference"
    assert choose_backend("auto", CPU) == "cpp"
    assert choose_backend("reference", CPU) == "reference"
    pymtg.set_backend("reference")
    assert choose_backend(None, CPU) == "reference"
    assert choose_backend("cpp", CPU) == "cpp"
    assert choose_backend("auto", CPU) == "cpp"
    pymtg.set_backend("cpp")
    with pytest.raises(BackendError, match="backend 'cpp' does not serve tensors on meta"):
        choose_backend(None, META)


def test_the_chosen_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """set_backend reaches the operator: the reference and C++ give sums that differ in their last bits."""
    layout = TaskLayout(["a"], [3])
    called = []
    for name in BACKENDS:
        real = pymtg._backend._BACKENDS[name]

        def spy(*args, name=name, real=real, **kwargs):
            called.append(name)
            return real.cross_entropy(*args, **kwargs)

        spied = dataclasses.replace(real, cross_entropy=spy)
        monkeypatch.setitem(pymtg._backend._BACKENDS, name, spied)
    logits, targets = torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long)
    for name in BACKENDS:
        pymtg.set_backend(name)
        multitask_cross_entropy(logits, targets, layout)
        multitask_cross_entropy(logits, targets, layout, backend="cpp")
    assert called == ["cpp", "cpp", "reference", "cpp"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="its device is there")
def test_a_backend_whose_device_is_not_there() -> None:
    message = "backend must be one of auto, cpp, reference; 'triton' needs a device or a package that is not here"
    with pytest.raises(BackendError, match=message):
        pymtg.set_backend("triton")
    with pytest.raises(BackendError, match=message):
        choose_backend("triton", CPU)
    assert "triton" not in pymtg.available_backends()


@pytest.mark.parametrize("name", ["CPP", "", "cuda?", 3])
def test_unknown_names(name: object) -> None:
    message = f"backend must be one of auto, {', '.join(pymtg.available_backends())}; got {name!r}"
    before = pymtg.get_backend()
    with pytest.raises(InvalidArgumentError) as raised:
        pymtg.set_backend(name)  # type: ignore[arg-type]
    assert str(raised.value) == message
    assert pymtg.get_backend() == before
    with pytest.raises(InvalidArgumentError) as raised:
        multitask_cross_entropy(torch.zeros(1, 1), torch.zeros(1, 1).long(), TaskLayout.binary(["a"]), backend=name)
    assert str(raised.value) == message


@pytest.mark.parametrize(("value", "expected"), [("", "auto"), ("reference", "reference"), ("cpp", "cpp")])
def test_environment(value: str, expected: str) -> None:
    done = python("import pymtg; print(pymtg.get_backend())", PYMTG_BACKEND=value)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_environment_nonsense() -> None:
    line = last_line(python("import pymtg; pymtg.MultiTaskLoss", PYMTG_BACKEND="fast"))
    assert line == (
        "pymtg.errors.InvalidArgumentError: environment variable PYMTG_BACKEND must be one of auto, cpp, reference; "
        "got 'fast'"
    )


def test_isa_nonsense() -> None:
    """Found out when pymtg is first used, not in the middle of the first batch."""
    line = last_line(python("import pymtg; pymtg.MultiTaskLoss", PYMTG_ISA="mmx"))
    assert line == (
        "pymtg.errors.InvalidArgumentError: environment variable PYMTG_ISA must be one of base, avx2, avx512; got mmx"
    )


def test_isa_base_runs_everywhere() -> None:
    done = python("from pymtg import _core; print(_core.isa())", PYMTG_ISA="base")
    assert (done.returncode, done.stdout.strip()) == (0, "base"), done.stderr


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_isa_the_machine_lacks(isa: str) -> None:
    done = python("import pymtg; pymtg.DataMap; from pymtg import _core; print(_core.isa())", PYMTG_ISA=isa)
    if done.returncode == 0:
        assert done.stdout.strip() == isa
    else:
        assert "InvalidArgumentError: environment variable PYMTG_ISA=" + isa in last_line(done)
        assert "goes no further than" in last_line(done)
