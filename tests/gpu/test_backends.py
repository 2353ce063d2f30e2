"""The kernels on a device, over the grid of cases: losses, gradients, maps, faults, streams, graphs, sanitizer."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _cases import CLASSES, MISSING, ROWS, STRIDES, random_case, random_layout
from _loss_checks import check, run
from _settings import LOGIT_DTYPES, TARGET_DTYPES
from test_extreme_logits import both, every_row
from torch import Tensor

from pymtg import DataMap, MultiTaskLoss, TaskLayout, available_backends
from pymtg.errors import InvalidArgumentError, MissingLabelError, SampleIdError
from pymtg.functional import multitask_cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)
SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param not in available_backends():
        pytest.skip(f"{request.param} is not installed here")
    return request.param


@pytest.mark.parametrize("name", CLASSES)
def test_layouts(name: str, backend: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate(ROWS):
        drawn = [int(n) for n in torch.randint(2**20, (5,), generator=generator)]
        case = random_case(
            random_layout(CLASSES[name], generator, weighted=number % 2 == 1),
            rows,
            generator,
            dtype=LOGIT_DTYPES[drawn[0] % len(LOGIT_DTYPES)],
            target_dtype=TARGET_DTYPES[drawn[1] % len(TARGET_DTYPES)],
            missing=MISSING[drawn[2] % len(MISSING)],
            logit_strides=STRIDES[drawn[3] % len(STRIDES)],
            target_strides=STRIDES[drawn[4] % len(STRIDES)],
        )
        check(case, backend, CUDA)


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
def test_dtypes_and_strides(dtype: torch.dtype, backend: str, generator: torch.Generator, poisoned: None) -> None:
    layout = random_layout([*[1] * 27, 3, 5, 2, 300, *[2] * 29], generator, weighted=True)
    for target_dtype, strides in itertools.product(TARGET_DTYPES, STRIDES):
        case = random_case(
            layout,
            33,
            generator,
            dtype=dtype,
            target_dtype=target_dtype,
            missing="some",
            logit_strides=strides,
            target_strides=strides,
        )
        check(case, backend, CUDA)


@pytest.mark.parametrize("classes", [[1] * 20, [2] * 300, [3, 1, 40, 2], [300, 2, 1], [5000]], ids=lambda c: str(c[:4]))
@pytest.mark.parametrize("missing", [False, True])
def test_map_against_the_oracle(classes: list[int], missing: bool, backend: str, generator: torch.Generator) -> None:
    layout = random_layout(classes, generator, weighted=False)
    ours, theirs = DataMap(600, layout, missing=missing, device=CUDA), DataMap(600, layout, missing=missing)
    for rows, samples in ((40, 7), (500, 600), (1, 30), (3_000, 600), (70, 1)):
        case = random_case(layout, rows, generator, missing="some" if missing else "none")
        ids = torch.randint(samples, (rows,), generator=generator)
        there = case.to(CUDA)
        multitask_cross_entropy(
            there.logits, there.targets, layout, data_map=ours, sample_ids=ids.to(CUDA), backend=backend
        )
        multitask_cross_entropy(case.logits, case.targets, layout, data_map=theirs, sample_ids=ids, backend="reference")
    torch.testing.assert_close(ours.mean.cpu(), theirs.mean, rtol=1e-5, atol=2e-7)
    torch.testing.assert_close(ours.std.cpu(), theirs.std, rtol=2e-4, atol=5e-6)
    assert torch.equal(ours.count.cpu(), theirs.count)
    assert ours.num_rejected == theirs.num_rejected == 0
    # A tie between classes may be broken otherwise where the last bit of a logit's difference is at stake.
    assert float((ours.correctness.cpu() != theirs.correctness).float().mean()) < 1e-3


def one_step(loss: MultiTaskLoss, logits: Tensor, targets: Tensor, ids: Tensor) -> None:
    logits.grad = None
    loss(logits, targets, ids).backward()


def test_the_same_bits_in_20_runs(backend: str, generator: torch.Generator) -> None:
    layout = random_layout(CLASSES["ones-twos-mixed"], generator, weighted=True)
    case = random_case(layout, 1_000, generator, missing="some").to(CUDA)
    ids = torch.randint(300, (1_000,), generator=generator).to(CUDA)
    seen = []
    for _ in range(20):
        data_map = DataMap(300, layout, missing=True, device=CUDA)
        loss = MultiTaskLoss(layout, data_map, backend=backend)
        one_step(loss, case.logits, case.targets, ids)
        assert case.logits.grad is not None
        seen.append((loss.task_losses, case.logits.grad.clone(), *(t.clone() for t in data_map.state)))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_graph_capture(backend: str, generator: torch.Generator) -> None:
    """Replays of a captured step record as the step itself does, with ids and targets changed in between."""
    layout = TaskLayout.binary([f"task{t}" for t in range(100)])
    logits = torch.randn(256, 100, device=CUDA).requires_grad_()
    targets, ids = torch.zeros(256, 100, dtype=torch.long, device=CUDA), torch.arange(256, device=CUDA)
    graphed, eager = (DataMap(1_000, layout, device=CUDA) for _ in range(2))
    loss, plain = MultiTaskLoss(layout, graphed, backend=backend), MultiTaskLoss(layout, eager, backend=backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            one_step(loss, logits, targets, ids)
    torch.cuda.current_stream().wait_stream(stream)
    graphed.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_step(loss, logits, targets, ids)
    captured = logits.grad
    for _ in range(3):
        targets.copy_(torch.randint(2, (256, 100), generator=generator))
        ids.copy_(torch.randint(1_000, (256,), generator=generator))
        graph.replay()
        gradient = captured.clone()
        one_step(plain, logits, targets, ids)
        assert torch.equal(gradient, logits.grad)
    assert torch.equal(graphed.state.words, eager.state.words)
    assert torch.equal(graphed.state.counts, eager.state.counts)


def test_no_synchronisation(backend: str) -> None:
    layout = TaskLayout(["a", "b"], [3, 1])
    data_map = DataMap(50, layout, device=CUDA)
    loss = MultiTaskLoss(layout, data_map, backend=backend)
    logits = torch.randn(40, 4, device=CUDA).requires_grad_()
    targets, ids = torch.zeros(40, 2, dtype=torch.long, device=CUDA), torch.arange(40, device=CUDA)
    one_step(loss, logits, targets, ids)
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step(loss, logits, targets, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert data_map.count[:40].eq(2).all()


def test_streams(backend: str, generator: torch.Generator) -> None:
    """Four streams at once, each with a loss and a map of its own."""
    layout = random_layout(CLASSES["primes"], generator, weighted=True)
    case = random_case(layout, 2_000, generator)
    expected, expected_gradient = run(case, "reference")
    there, found = case.to(CUDA), []
    torch.cuda.synchronize()
    for _ in range(4):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            data_map, logits = DataMap(2_000, layout, device=CUDA), there.logits.detach().clone().requires_grad_()
            ids = torch.arange(2_000, device=CUDA)
            for _ in range(10):
                losses = multitask_cross_entropy(
                    logits, there.targets, layout, data_map=data_map, sample_ids=ids, backend=backend
                )
            (gradient,) = torch.autograd.grad((losses * there.upstream).sum(), logits)
            found.append((losses, gradient, data_map))
    torch.cuda.synchronize()
    for losses, gradient, data_map in found:
        torch.testing.assert_close(losses.detach().cpu(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=1e-4, atol=1e-7)
        assert data_map.count.eq(10).all()


def test_faults(backend: str) -> None:
    layout = TaskLayout(["a", "b", "c"], [3, 300, 2])
    good, ids = torch.zeros(4, 3, dtype=torch.long), torch.arange(4)
    bad = good.clone()
    bad[2, 1] = 300
    missing = good.clone()
    missing[3, 2] = -100
    stray = ids.clone()
    stray[1] = 2**40
    for targets, sample_ids, error, rows in (
        (bad, ids, InvalidArgumentError, [1, 1, 0, 1]),
        (missing, ids, MissingLabelError, [1, 1, 1, 0]),
        (good, stray, SampleIdError, [1, 0, 1, 1]),
    ):
        data_map = DataMap(4, layout, device=CUDA)
        logits = torch.ones(4, layout.num_logits, device=CUDA)
        losses = multitask_cross_entropy(
            logits, targets.to(CUDA), layout, data_map=data_map, sample_ids=sample_ids.to(CUDA), backend=backend
        )
        assert losses.isnan().tolist() == [False, error is InvalidArgumentError, False]
        with pytest.raises(error):
            _ = data_map.count
        assert data_map.count[:, 0].tolist() == rows


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_extreme_logits(classes: int, backend: str) -> None:
    x, y = every_row(classes)
    layout = TaskLayout(["task"], [classes])
    for logits, targets in zip(x[:, None].float().unbind(), y[:, None, None].unbind(), strict=True):
        ours = both(logits.to(CUDA), targets.to(CUDA), layout, backend)
        theirs = both(logits, targets, layout, "reference")
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.cpu(), b, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_beyond_32_bits(backend: str) -> None:
    """More than 2^31 logits: the last row's answers are right."""
    rows, tasks = 2**16, 2**15 + 8
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("less than 40 GiB of memory")
    layout = TaskLayout.binary([f"task{t}" for t in range(tasks)])
    logits = torch.zeros(rows, tasks, device=CUDA, dtype=torch.bfloat16)
    logits[-1] = 2
    targets = torch.ones(1, tasks, dtype=torch.uint8, device=CUDA).expand(rows, tasks)
    losses = multitask_cross_entropy(logits, targets, layout, backend=backend)
    expected = ((rows - 1) * 0.6931471805599453 + 0.126928011042972) / rows
    torch.testing.assert_close(losses, torch.full_like(losses, expected), rtol=1e-5, atol=0)


@pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool: str) -> None:
    """Every kernel of pymtg._cuda, under the tool; torch's own are left out."""
    if "cuda" not in available_backends():
        pytest.skip("cuda is not installed here")
    assert SANITIZER is not None
    script = Path(__file__).with_name("sanitized_steps.py")
    filters = ["--kernel-regex", "kns=pymtg", "--error-exitcode", "9"]
    done = subprocess.run(
        [SANITIZER, "--tool", tool, *filters, sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=80,
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "steps done" in done.stdout
