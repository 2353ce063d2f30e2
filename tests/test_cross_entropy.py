"""Losses, gradients and recorded probabilities of every backend against one task at a time in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from _cases import CLASSES, MISSING, ROWS, STRIDES, random_case, random_layout, task_by_task
from _loss_checks import check, run, wide
from _settings import BACKENDS, LOGIT_DTYPES, TARGET_DTYPES

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy


@pytest.mark.parametrize("name", CLASSES)
def test_layouts(name: str, backend: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate(ROWS):
        layout = random_layout(CLASSES[name], generator, weighted=number % 2 == 1)
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
        check(case, backend)


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
@pytest.mark.parametrize("missing", MISSING)
def test_dtypes(dtype: torch.dtype, missing: str, backend: str, generator: torch.Generator, poisoned: None) -> None:
    classes = [*[1] * 27, 3, 5, 2, 300, *[2] * 29]
    for target_dtype, weighted in itertools.product(TARGET_DTYPES, (False, True)):
        layout = random_layout(classes, generator, weighted=weighted)
        check(random_case(layout, 33, generator, dtype=dtype, target_dtype=target_dtype, missing=missing), backend)


@pytest.mark.parametrize("logit_strides", STRIDES)
@pytest.mark.parametrize("target_strides", STRIDES)
def test_strides(logit_strides: str, target_strides: str, backend: str, generator: torch.Generator) -> None:
    layout = random_layout([*[1] * 24, 17, 3, *[2] * 25], generator, weighted=True)
    for rows, target_dtype, dtype in itertools.product((1, 35), (torch.uint8, torch.int64), LOGIT_DTYPES[:2]):
        check(
            random_case(
                layout,
                rows,
                generator,
                dtype=dtype,
                target_dtype=target_dtype,
                missing="some",
                logit_strides=logit_strides,
                target_strides=target_strides,
            ),
            backend,
        )


@pytest.mark.parametrize("classes", [[1] * 26, [2] * 26, [1, 2, 3, 4]], ids=["ones", "twos", "ragged"])
def test_gradcheck(classes: list[int], backend: str, generator: torch.Generator) -> None:
    layout = random_layout(classes, generator, weighted=True)
    case = random_case(layout, 3, generator, dtype=torch.float64, missing="some")
    assert torch.autograd.gradcheck(
        lambda logits: multitask_cross_entropy(logits, case.targets, layout, backend=backend), case.logits
    )
    assert torch.autograd.gradcheck(
        lambda logits: weighted_multitask_cross_entropy(
            logits, case.targets, layout, case.upstream.abs(), backend=backend
        )[0],
        case.logits,
    )


@pytest.mark.parametrize("name", ["ones-100", "twos-37", "ragged", "ones-twos-mixed", "mixed-twos-ones"])
@pytest.mark.parametrize("missing", ["none", "some", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_recording_changes_no_loss(
    name: str, missing: str, dtype: torch.dtype, backend: str, generator: torch.Generator, poisoned: None
) -> None:
    layout = random_layout(CLASSES[name], generator, weighted=True)
    case = random_case(layout, 37, generator, dtype=dtype, missing=missing)
    data_map = DataMap(50, layout, missing=missing != "none")
    ids = torch.randperm(50, generator=generator)[:37]
    losses = multitask_cross_entropy(
        case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=backend
    )
    (gradient,) = torch.autograd.grad((losses * case.upstream).sum(), case.logits)
    expected_losses, expected_gradient = run(case, backend)
    assert torch.equal(losses, expected_losses)
    assert torch.equal(gradient, expected_gradient)

    truth = task_by_task(case)
    torch.testing.assert_close(data_map.mean[ids].double(), truth.gold * truth.valid, rtol=4e-6, atol=1e-8)
    assert torch.equal(data_map.correctness[ids] > 0, truth.right & truth.valid)
    assert torch.equal(data_map.count[ids], truth.valid.int())
    assert not data_map.std.any()
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, ids, False)
    assert not data_map.state.words[untouched].any()
    assert not data_map.count[untouched].any()


def test_weighted_total(backend: str, generator: torch.Generator) -> None:
    for name, dtype in itertools.product(("ones-25", "primes"), LOGIT_DTYPES):
        case = random_case(random_layout(CLASSES[name], generator, weighted=True), 33, generator, dtype=dtype)
        weights = torch.rand(case.layout.num_tasks, generator=generator)
        weights[0] = 0
        total, losses = weighted_multitask_cross_entropy(
            case.logits, case.targets, case.layout, weights, backend=backend
        )
        assert not losses.requires_grad
        (gradient,) = torch.autograd.grad(total * 3, case.logits)
        case.upstream = 3 * weights.to(wide(dtype))
        expected, expected_gradient = run(case, backend)
        assert torch.equal(losses, expected)
        torch.testing.assert_close(total, (weights * expected).sum().to(total.dtype))
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient, expected_gradient, rtol=4 * tolerance, atol=tolerance)
        assert not gradient[:, case.layout.columns(0)].any()


def test_confident_losses_keep_their_digits(generator: torch.Generator) -> None:
    """A logistic loss of 1e-9 is no zero: relative accuracy, as torch's."""
    logits = torch.linspace(5, 80, 30)[None]
    for layout, x in ((TaskLayout.binary([f"t{t}" for t in range(30)]), logits),):
        truth = torch.nn.functional.softplus(-logits[0].double())
        got = multitask_cross_entropy(x, torch.ones(1, 30, dtype=torch.long), layout, backend="cpp")
        torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [20_000])
def test_many_rows(rows: int, generator: torch.Generator) -> None:
    layout = random_layout([1, 3, 2], generator, weighted=False)
    case = random_case(layout, rows, generator, missing="some")
    for backend in BACKENDS:
        check(case, backend)


def test_many_tasks(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout([f"task{t}" for t in range(100_000)], [1] * 100_000)
    logits = torch.randn(2, 100_000, generator=generator).requires_grad_()
    targets = torch.randint(2, (2, 100_000), generator=generator)
    data_map = DataMap(3, layout)
    losses = multitask_cross_entropy(
        logits, targets, layout, data_map=data_map, sample_ids=torch.tensor([2, 0]), backend=backend
    )
    truth = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.detach().double(), targets.double(), reduction="none"
    )
    torch.testing.assert_close(losses.detach().double(), truth.mean(0), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, ((logits.sigmoid() - targets) / 2).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(data_map.mean[[2, 0]].double(), (-truth).exp(), rtol=1e-5, atol=1e-6)
    assert data_map.count[:, -1].tolist() == [1, 0, 1]
