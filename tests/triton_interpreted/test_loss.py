"""Losses and gradients over the grid of cases, against one task at a time in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from _cases import CLASSES, MISSING, STRIDES, Case, random_case, random_layout, task_by_task
from _loss_checks import check, wide
from _settings import LOGIT_DTYPES, TARGET_DTYPES

from pymtg import TaskLayout
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy

INF, NAN = torch.inf, torch.nan
VALUES = (0.0, 3.0, -3.0, 1e4, -1e4, INF, -INF, NAN)
LAYOUTS = {
    name: CLASSES[name]
    for name in ("ones-1", "ones-25", "ones-100", "twos-1", "twos-26", "primes", "ragged", "wide", "wide-between")
} | {"widest": [1030, 2], "many": [1] * 700, "mixed-twos-ones": CLASSES["mixed-twos-ones"]}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate((9, 1)):
        layout = random_layout(LAYOUTS[name], generator, weighted=number == 0)
        drawn = [int(n) for n in torch.randint(2**20, (5,), generator=generator)]
        case = random_case(
            layout,
            rows,
            generator,
            dtype=LOGIT_DTYPES[drawn[0] % len(LOGIT_DTYPES)],
            target_dtype=TARGET_DTYPES[drawn[1] % len(TARGET_DTYPES)],
            missing=MISSING[drawn[2] % len(MISSING)],
            logit_strides=STRIDES[drawn[3] % len(STRIDES)],
            target_strides=STRIDES[drawn[4] % len(STRIDES)],
        )
        check(case, "triton")


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, generator: torch.Generator, poisoned: None) -> None:
    for number, target_dtype in enumerate(TARGET_DTYPES):
        layout = random_layout([1, 1, 5, 2], generator, weighted=number % 2 == 0)
        missing = MISSING[number % len(MISSING)]
        check(random_case(layout, 7, generator, dtype=dtype, target_dtype=target_dtype, missing=missing), "triton")


@pytest.mark.parametrize("logit_strides", STRIDES)
def test_strides(logit_strides: str, generator: torch.Generator) -> None:
    layout = random_layout([1, 1, 3], generator, weighted=True)
    for target_strides in STRIDES:
        strides = {"logit_strides": logit_strides, "target_strides": target_strides}
        check(random_case(layout, 3, generator, missing="some", **strides), "triton")


def test_several_blocks(generator: torch.Generator, poisoned: None) -> None:
    """More rows than a program reads at once, more programs than one; rows that do not fill a block."""
    layout = random_layout([1, 1, 1, 4], generator, weighted=True)
    check(random_case(layout, 150, generator, missing="some"), "triton")


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("classes", [[1], [2], [1100], [1, 3]], ids=str)
def test_hardly_anything(rows: int, classes: list[int], generator: torch.Generator, poisoned: None) -> None:
    check(random_case(random_layout(classes, generator, weighted=False), rows, generator), "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("among", [False, True])
def test_extreme_logits(classes: int, among: bool, dtype: torch.dtype) -> None:
    """Every combination of values, each in a task of its own: losses and gradients as torch's; also beside others."""
    table = [(x, y) for x in itertools.product(VALUES, repeat=classes) for y in range(max(classes, 2))]
    table = table[:: 5 if classes == 3 else 1]
    values = [list(x) for x, _ in table]
    labels = [y for _, y in table]
    counts = [classes] * len(table)
    if among:  # tiles of several class counts
        for place in range(0, len(table), 2):
            values[place : place + 1] = [[1.0, 2.0, 0.5]]
            labels[place], counts[place] = 2, 3
    layout = TaskLayout([f"task{t}" for t in range(len(table))], counts)
    logits = torch.tensor([[v for x in values for v in x]], dtype=dtype, requires_grad=True)
    case = Case(layout, logits, torch.tensor([labels]), torch.ones(len(table), dtype=dtype), -100)
    losses = multitask_cross_entropy(case.logits, case.targets, layout, backend="triton")
    (gradient,) = torch.autograd.grad(losses.sum(), case.logits)
    truth = task_by_task(case, dtype)
    torch.testing.assert_close(losses.detach(), truth.losses, equal_nan=True, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, truth.gradient, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_wide_task_of_infinities() -> None:
    """Minus infinity through whole chunks, then a finite class; plus infinity; nothing finite at all; NaN."""
    logits = torch.full((5, 1200), -INF)
    logits[0, 1100], logits[1, [3, 1100]], logits[2, 700], logits[4, 1199] = 1.0, torch.tensor([2.0, 3.0]), INF, NAN
    layout, targets = TaskLayout(["a"], [1200]), torch.tensor([[1100], [3], [700], [0], [5]])
    for row in range(5):
        x = logits[row : row + 1].clone().requires_grad_()
        loss = multitask_cross_entropy(x, targets[row : row + 1], layout, backend="triton")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        truth = task_by_task(Case(layout, x, targets[row : row + 1], torch.ones(1), -100), torch.float32)
        torch.testing.assert_close(loss.detach(), truth.losses, equal_nan=True)
        torch.testing.assert_close(gradient, truth.gradient, equal_nan=True)


def test_confident_losses_keep_their_digits() -> None:
    """A logistic loss of 1e-9 is no zero."""
    logits = torch.linspace(5, 80, 30)[None]
    layout = TaskLayout.binary([f"t{t}" for t in range(30)])
    truth = torch.nn.functional.softplus(-logits[0].double())
    got = multitask_cross_entropy(logits, torch.ones(1, 30, dtype=torch.long), layout, backend="triton")
    torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
def test_weighted_total(dtype: torch.dtype, generator: torch.Generator) -> None:
    case = random_case(random_layout([1, 1, 4, 2], generator, weighted=True), 6, generator, dtype=dtype)
    weights = torch.rand(4, generator=generator)
    weights[0] = 0
    total, losses = weighted_multitask_cross_entropy(case.logits, case.targets, case.layout, weights, backend="triton")
    (gradient,) = torch.autograd.grad(total * 3, case.logits)
    case.upstream = 3 * weights.to(wide(dtype))
    truth = task_by_task(case)
    torch.testing.assert_close(losses.double(), truth.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.detach().double(), (weights * truth.losses).sum(), rtol=1e-5, atol=1e-6)
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), truth.gradient, rtol=4 * tolerance, atol=max(tolerance, 1e-7))
    assert not gradient[:, 0].any()


def test_small_half_gradients_are_scaled_before_they_are_rounded() -> None:
    """An upstream gradient as torch's GradScaler has it: nothing is lost to float16 before it."""
    layout = TaskLayout.binary(["a"])
    logits = torch.full((64, 1), 9.0, dtype=torch.float16, requires_grad=True)
    losses = multitask_cross_entropy(logits, torch.ones(64, 1, dtype=torch.long), layout, backend="triton")
    (gradient,) = torch.autograd.grad(losses.sum() * 65536, logits)
    expected = -65536 / 64 * torch.sigmoid(torch.tensor(-9.0))
    torch.testing.assert_close(gradient.float(), expected.expand(64, 1), rtol=1e-3, atol=0)
