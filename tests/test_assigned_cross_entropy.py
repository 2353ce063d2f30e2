"""K heads a task under an assignment: total, losses and both gradients against the plain definition in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _cases import CLASSES, MISSING, STRIDES, random_layout
from _heads import STACKS, Heads, plain_total, random_heads, truth_of
from _settings import BACKENDS, ISAS, LOGIT_DTYPES, TARGET_DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pymtg import TaskLayout
from pymtg.functional import assigned_cross_entropy, weighted_multitask_cross_entropy

# What a backend may be off beyond plain torch's own error in the same dtype, in units in the last place of the
# largest number that went into the result.
MARGIN = {torch.float32: 8, torch.float64: 8, torch.float16: 0.6, torch.bfloat16: 0.6}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(heads: Heads, backend: str, upstream: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, losses = assigned_cross_entropy(
        heads.logits,
        heads.targets,
        heads.assignment,
        heads.layout,
        ignore_index=heads.ignore_index,
        backend=backend,
    )
    gradients = torch.autograd.grad(total * upstream, (heads.logits, heads.assignment))
    return total.detach(), losses, *gradients


def heaviest_weights(layout: TaskLayout) -> Tensor:
    """Per task, what its losses are multiplied by at most."""
    result = torch.ones(layout.num_tasks, dtype=torch.float64)
    for t in range(layout.num_tasks):
        one = None if layout.pos_weight is None else layout.pos_weight[t]
        many = None if layout.class_weights is None else layout.class_weights[t]
        result[t] = max(1.0, one or 0.0, *(many or ()))
    return result


def assert_within(what: str, got: Tensor, plain: Tensor, truth: Tensor, margin: Tensor, heads: Heads) -> None:
    error, own = (got.double() - truth).abs(), (plain.double() - truth).abs()
    if bool(((error - own - margin).nan_to_num(nan=torch.inf) > 0).any()):
        pytest.fail(f"{what} off by {error.max():.3g}, plain torch by {own.max():.3g}: {heads}", pytrace=False)


def check(heads: Heads, backend: str) -> None:
    dtype, assignment_dtype = heads.logits.dtype, heads.assignment.dtype
    total, losses, gradient, share_gradient = run(heads, backend)
    assert (total.dtype, losses.dtype, gradient.dtype) == (wide(dtype), wide(dtype), dtype)
    assert share_gradient.dtype == assignment_dtype
    assert losses.shape == (heads.layout.num_tasks, len(heads.logits))
    assert not losses.requires_grad
    # Half-precision shares take part as the numbers they are; a float64 one is rounded to the arithmetic's dtype.
    heads.assignment.data = heads.assignment.data.to(wide(dtype)).to(assignment_dtype)
    truth, plain = truth_of(heads), truth_of(heads, wide(dtype))

    unit = MARGIN[wide(dtype)] * torch.finfo(wide(dtype)).eps
    largest = 1 + heads.logits.detach().double().abs().amax() if heads.logits.numel() else torch.tensor(1.0)
    weight = heaviest_weights(heads.layout)
    size = unit * largest * weight
    shares = heads.assignment.detach().double()
    by_task = shares.amax(0) if shares.dim() == 3 and len(shares) else shares.reshape(-1, *shares.shape[-2:]).sum(0)
    assert_within("losses", losses, plain[1], truth[1], size[:, None], heads)
    assert_within("total", total, plain[0], truth[0], (size[:, None] * by_task).sum(), heads)

    count = (heads.targets != heads.ignore_index).sum(0).clamp(min=1)
    one_row = size / count if heads.assignment.dim() == 3 else size
    margin = one_row[:, None].expand(truth[3].shape[-2:]) + rounding(truth[3], assignment_dtype, wide(dtype))
    assert_within("gradient of the assignment", share_gradient, plain[3].to(assignment_dtype), truth[3], margin, heads)

    spread = max(heads.layout.num_classes) / (8 if wide(dtype) == torch.float64 else 64)
    factor = (by_task * (weight / count)[:, None]).T.repeat_interleave(torch.tensor(heads.layout.num_classes), 1)
    margin = (unit + spread * torch.finfo(wide(dtype)).eps) * factor[:, None] + rounding(truth[2], dtype, wide(dtype))
    assert_within("gradient of the logits", gradient, plain[2].to(dtype), truth[2], margin, heads)


def rounding(truth: Tensor, dtype: torch.dtype, arithmetic: torch.dtype) -> Tensor:
    """What rounding to a dtype below the arithmetic's may change; subnormal halves lie evenly."""
    if torch.finfo(dtype).eps <= torch.finfo(arithmetic).eps:
        return torch.zeros_like(truth)
    finfo = torch.finfo(dtype)
    return 0.6 * (finfo.eps * truth.abs() + finfo.eps * finfo.tiny)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("name", [name for name in CLASSES if name[:6] not in ("twos-2", "twos-3", "widest")])
def test_layouts(name: str, per_row: bool, backend: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate((0, 1, 33) if backend == "cpp" else (5,)):
        drawn = [int(n) for n in torch.randint(2**20, (7,), generator=generator)]
        heads = random_heads(
            random_layout(CLASSES[name], generator, weighted=number % 2 == 1),
            (1, 2, 3)[drawn[0] % 3],
            rows,
            generator,
            per_row=per_row,
            dtype=LOGIT_DTYPES[drawn[1] % len(LOGIT_DTYPES)],
            assignment_dtype=LOGIT_DTYPES[drawn[2] % len(LOGIT_DTYPES)],
            strides=STACKS[drawn[3] % len(STACKS)],
            target_dtype=TARGET_DTYPES[drawn[4] % len(TARGET_DTYPES)],
            missing=MISSING[drawn[5] % len(MISSING)],
            target_strides=STRIDES[drawn[6] % len(STRIDES)],
        )
        check(heads, backend)


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_dtypes(dtype: torch.dtype, per_row: bool, backend: str, generator: torch.Generator, poisoned: None) -> None:
    order = torch.randperm(len(MISSING), generator=generator).tolist()  # each dtype meets another pattern in every run
    for assignment_dtype, missing in zip(LOGIT_DTYPES, (MISSING[i] for i in order), strict=True):
        layout = random_layout([*[1] * 27, 3, 5, 2, *[2] * 29], generator, weighted=missing == "some")
        options = {"dtype": dtype, "assignment_dtype": assignment_dtype, "missing": missing, "per_row": per_row}
        check(random_heads(layout, 2, 33, generator, **options), backend)


@pytest.mark.parametrize("strides", STACKS)
@pytest.mark.parametrize("per_row", [False, True])
def test_strides(strides: str, per_row: bool, backend: str, generator: torch.Generator) -> None:
    layout = random_layout([*[1] * 24, 17, 3, *[2] * 25], generator, weighted=True)
    for number, target_strides in enumerate(STRIDES):
        rows, dtype = (35, 1)[number % 2], LOGIT_DTYPES[number % 2]
        options = {"strides": strides, "target_strides": target_strides, "dtype": dtype, "per_row": per_row}
        check(random_heads(layout, 2, rows, generator, missing="some", **options), backend)


@pytest.mark.parametrize("classes", [[1], [1] * 26, [2] * 26, [1, 2, 3, 4]], ids=["one", "ones", "twos", "ragged"])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradcheck(classes: list[int], per_row: bool, backend: str, generator: torch.Generator) -> None:
    layout = random_layout(classes, generator, weighted=True)
    heads = random_heads(layout, 2, 3, generator, dtype=torch.float64, missing="some", per_row=per_row)
    assert torch.autograd.gradcheck(
        lambda logits, assignment: (
            2.5 * assigned_cross_entropy(logits, heads.targets, assignment, layout, backend=backend)[0]
        ),
        (heads.logits, heads.assignment),
    )


@pytest.mark.parametrize("upstream", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("per_row", [False, True])
def test_upstream(upstream: float, per_row: bool, backend: str, generator: torch.Generator) -> None:
    heads = random_heads(random_layout([1, 2, 3], generator, weighted=True), 3, 19, generator, per_row=per_row)
    expected = truth_of(heads, torch.float32)
    for got, wanted in zip(run(heads, backend, upstream)[2:], expected[2:], strict=True):
        torch.testing.assert_close(got, wanted * upstream, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_row", [False, True])
def test_one_gradient_alone(per_row: bool, backend: str, generator: torch.Generator) -> None:
    heads = random_heads(random_layout([1, 2, 3], generator, weighted=True), 3, 19, generator, per_row=per_row)
    expected = run(heads, backend)
    logits, assignment = heads.logits, heads.assignment
    for fixed in (("logits",), ("assignment",), ("logits", "assignment")):
        heads.logits = logits.detach() if "logits" in fixed else logits
        heads.assignment = assignment.detach() if "assignment" in fixed else assignment
        total, losses = assigned_cross_entropy(
            heads.logits, heads.targets, heads.assignment, heads.layout, backend=backend
        )
        assert torch.equal(total, expected[0])
        assert torch.equal(losses, expected[1])
        assert total.requires_grad == (len(fixed) == 1)
        if fixed == ("logits",):
            assert torch.equal(torch.autograd.grad(total, assignment)[0], expected[3])
        if fixed == ("assignment",):
            assert torch.equal(torch.autograd.grad(total, logits)[0], expected[2])


def test_one_head_is_the_weighted_loss(backend: str, generator: torch.Generator) -> None:
    """K = 1 is weighted_multitask_cross_entropy, and so is each head of several, bit for bit in C++."""
    for name, dtype in itertools.product(("ones-100", "primes", "ones-mixed-twos"), LOGIT_DTYPES):
        layout = random_layout(CLASSES[name], generator, weighted=True)
        heads = random_heads(layout, 3, 77, generator, dtype=dtype, assignment_dtype=wide(dtype), missing="some")
        _, losses, gradient, _ = run(heads, backend)
        for k in range(3):
            logits = heads.logits[k].detach().requires_grad_()
            total, expected = weighted_multitask_cross_entropy(
                logits, heads.targets, layout, heads.assignment[:, k].detach(), backend=backend
            )
            exact = {"rtol": 0, "atol": 0} if backend == "cpp" else {}
            torch.testing.assert_close(losses[:, k], expected, **exact)
            torch.testing.assert_close(gradient[k], torch.autograd.grad(total, logits)[0], **exact)


@pytest.mark.parametrize("per_row", [False, True])
def test_threads_change_no_bit(per_row: bool, generator: torch.Generator) -> None:
    for name in ("ones-100", "primes", "ones-mixed-twos"):
        layout = random_layout(CLASSES[name], generator, weighted=True)
        heads = random_heads(layout, 3, 700, generator, missing="some", per_row=per_row)
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(run(heads, "cpp"))
        torch.set_num_threads(1)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=30), st.booleans())
def test_order_of_the_heads(seed: int, num_heads: int, classes: list[int], per_row: bool) -> None:
    """Heads in another order: the same losses and gradients in that order."""
    generator = torch.Generator().manual_seed(seed)
    layout = random_layout(classes, generator, weighted=True)
    heads = random_heads(layout, num_heads, 21, generator, missing="some", per_row=per_row, dtype=torch.float64)
    order = torch.randperm(num_heads, generator=generator)
    moved = Heads(
        layout,
        heads.logits.detach()[order].requires_grad_(),
        heads.targets,
        heads.assignment.detach()[..., order].requires_grad_(),
        heads.ignore_index,
    )
    for backend in BACKENDS:
        total, losses, gradient, share_gradient = run(heads, backend)
        expected = (total, losses[:, order], gradient[order], share_gradient[..., order])
        torch.testing.assert_close(run(moved, backend), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.lists(st.integers(1, 5), min_size=1, max_size=30), st.booleans())
def test_batch_in_two_parts(seed: int, rows: int, classes: list[int], per_row: bool) -> None:
    """The parts' totals weighted by their labels make up the whole's; where all labels are there, by their rows."""
    generator = torch.Generator().manual_seed(seed)
    layout = random_layout(classes, generator, weighted=True)
    heads = random_heads(layout, 3, rows, generator, per_row=per_row, dtype=torch.float64)
    cut = int(torch.randint(1, rows, (), generator=generator))
    for backend in BACKENDS:
        total, losses, gradient, _ = run(heads, backend)
        parts = []
        for part in (slice(cut), slice(cut, rows)):
            shares = heads.assignment.detach()
            shares = shares[part] if per_row else shares
            logits = heads.logits.detach()[:, part].requires_grad_()
            parts.append(run(Heads(layout, logits, heads.targets[part], shares.requires_grad_(), -100), backend))
        share = (cut / rows, 1 - cut / rows)
        torch.testing.assert_close(total, share[0] * parts[0][0] + share[1] * parts[1][0])
        torch.testing.assert_close(losses, share[0] * parts[0][1] + share[1] * parts[1][1])
        torch.testing.assert_close(gradient, torch.cat([share[0] * parts[0][2], share[1] * parts[1][2]], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("repeats", [1, 30], ids=["alone", "among-many"])
@pytest.mark.parametrize("per_row", [False, True])
def test_values_that_are_not_finite(repeats: int, per_row: bool, dtype: torch.dtype, backend: str) -> None:
    """As the plain definition, also where a share of 0 meets a loss that is infinite: NaN."""
    values = (0.0, 3.0, -1e4, torch.inf, -torch.inf, torch.nan)
    for classes in (1, 2, 3):
        layout = TaskLayout([f"task{t}" for t in range(repeats)], [classes] * repeats)
        for value, label, first_share in itertools.product(values, (0, 1), (0.0, 0.25)):
            logits = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)[:classes].repeat(2, 1, repeats)
            logits[0, 0, ::classes] = value
            shares = torch.tensor([first_share, 1 - first_share], dtype=dtype).repeat(*([1] * per_row), repeats, 1)
            targets = torch.full((1, repeats), label)
            heads = Heads(layout, logits.requires_grad_(), targets, shares.requires_grad_(), -100)
            for got, expected in zip(run(heads, backend), truth_of(heads, dtype), strict=True):
                torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-6, msg=str)


def test_missing_labels_hide_any_value(backend: str, generator: torch.Generator) -> None:
    """Logits and shares of a missing label do not matter, whatever they are."""
    for classes, per_row in itertools.product(([1] * 30, [2] * 30, [3, 1, 40]), (False, True)):
        layout = random_layout(classes, generator, weighted=True)
        heads = random_heads(layout, 3, 40, generator, missing="some", per_row=per_row)
        hidden = heads.targets == heads.ignore_index
        expected = run(heads, backend)
        columns = hidden.repeat_interleave(torch.tensor(classes), 1)
        heads.logits = heads.logits.detach().masked_fill(columns, torch.nan).requires_grad_()
        if per_row:
            heads.assignment = heads.assignment.detach().masked_fill(hidden[:, :, None], torch.nan).requires_grad_()
        for got, wanted in zip(run(heads, backend), expected, strict=True):
            assert torch.equal(got, wanted)


_ON_AN_ISA = """
import sys, torch
from pymtg import TaskLayout, _core
from pymtg.functional import assigned_cross_entropy
torch.set_num_threads(1)
assert _core.isa() == sys.argv[3], _core.isa()
results = []
for classes, logits, targets, assignment in torch.load(sys.argv[1]):
    layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
    logits.requires_grad_()
    assignment.requires_grad_()
    total, losses = assigned_cross_entropy(logits, targets, assignment, layout, backend="cpp")
    results.append((total.detach(), losses, *torch.autograd.grad(total, (logits, assignment))))
torch.save(results, sys.argv[2])
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, generator: torch.Generator, tmp_path: Path) -> None:
    cases = []
    for classes in ([1] * 25, [2] * 37, [1, 300, 2, 7, 1, 3], [1] * 24 + [3] + [2] * 24):
        layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
        cases += [random_heads(layout, 3, 77, generator, missing="some", per_row=per_row) for per_row in (False, True)]
    given_cases = [(h.layout.num_classes, h.logits.detach(), h.targets, h.assignment.detach()) for h in cases]
    torch.save([(list(classes), *tensors) for classes, *tensors in given_cases], tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", _ON_AN_ISA, str(tmp_path / "given.pt"), str(tmp_path / "results.pt"), isa],
        env=os.environ | {"PYMTG_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "goes no further than" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    for heads, results in zip(cases, torch.load(tmp_path / "results.pt"), strict=True):
        for got, wanted in zip(results, truth_of(heads), strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=1e-6)


def test_the_definition_itself(generator: torch.Generator) -> None:
    """The oracle at hand-worked numbers: two rows, two heads, one task."""
    layout = TaskLayout(["a"], [1])
    logits = torch.tensor([[[0.0], [0.0]], [[80.0], [0.0]]], dtype=torch.float64)
    heads = Heads(layout, logits, torch.tensor([[1], [0]]), torch.tensor([[0.25, 0.75]]), -100)
    total, losses = plain_total(heads, logits, heads.assignment.double())
    log2 = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(losses, torch.stack([log2, log2 / 2])[None])
    torch.testing.assert_close(total, 0.25 * log2 + 0.75 * log2 / 2)
