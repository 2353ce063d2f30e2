"""Huge, infinite and NaN logits: losses and gradients as torch's, and no trace of such rows in the map."""

from __future__ import annotations

import itertools

import pytest
import torch
from _cases import Case, task_by_task
from torch import Tensor

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy

INF, NAN = torch.inf, torch.nan
VALUES = (0.0, 3.0, -3.0, 1e4, -1e4, INF, -INF, NAN)


def both(logits: Tensor, targets: Tensor, layout: TaskLayout, backend: str) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    losses = multitask_cross_entropy(logits, targets, layout, backend=backend)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach(), gradient


def every_row(classes: int) -> tuple[Tensor, Tensor]:
    rows = [(*x, y) for x in itertools.product(VALUES, repeat=classes) for y in range(max(classes, 2))]
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, :-1], table[:, -1].long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("repeats", [1, 30], ids=["alone", "among-many"])
def test_as_torch(classes: int, repeats: int, dtype: torch.dtype, backend: str) -> None:
    """Every combination of values, a row at a time: each row's own loss and gradient."""
    x, y = every_row(classes)
    layout = TaskLayout([f"task{t}" for t in range(repeats)], [classes] * repeats)
    ones = torch.ones(repeats, dtype=dtype)
    step = 1 if classes < 3 else 7
    for row in range(0, len(x), step):
        logits, targets = x[row : row + 1].to(dtype).repeat(1, repeats), y[row : row + 1, None].repeat(1, repeats)
        losses, gradient = both(logits, targets, layout, backend)
        truth = task_by_task(Case(layout, logits, targets, ones, -100), dtype)
        message = f"logits {x[row].tolist()}, label {int(y[row])}"
        torch.testing.assert_close(
            losses, truth.losses, equal_nan=True, rtol=1e-6, atol=1e-6, msg=lambda m, row=message: f"{row}: {m}"
        )
        torch.testing.assert_close(
            gradient, truth.gradient, equal_nan=True, rtol=1e-5, atol=1e-6, msg=lambda m, row=message: f"{row}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [[1] * 5, [1] * 30, [2] * 30, [3, 1, 2], [40, 1]], ids=str)
@pytest.mark.parametrize("missing", [False, True])
def test_map_refuses_the_row(
    classes: list[int], missing: bool, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
    logits = torch.randn(40, layout.num_logits, generator=generator).to(dtype)
    targets = (torch.rand(40, len(classes), generator=generator) * torch.tensor(classes).clamp(min=2)).long()
    for row, value in ((3, NAN), (17, INF), (18, NAN), (39, INF)):
        logits[row, int(torch.randint(layout.num_logits, (), generator=generator))] = value
    ids = torch.arange(40) // 2  # each id twice
    kept = torch.tensor([row not in (3, 17, 18, 39) for row in range(40)])
    if missing:  # where its label is missing, a logit's value does not matter
        targets[3], targets[18] = -100, -100
        kept[3] = kept[18] = True

    got, expected = DataMap(20, layout, missing=missing), DataMap(20, layout, missing=missing)
    losses = multitask_cross_entropy(logits, targets, layout, data_map=got, sample_ids=ids, backend=backend)
    multitask_cross_entropy(
        logits[kept], targets[kept], layout, data_map=expected, sample_ids=ids[kept], backend=backend
    )
    assert got.num_rejected == int((~kept).sum())
    if backend == "cpp":  # torch's own functions give the last bit by a number's place in memory
        assert torch.equal(got.state.words, expected.state.words)
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got.std, expected.std, rtol=1e-5, atol=1e-7)
    assert torch.equal(got.correctness, expected.correctness)
    assert torch.equal(got.count, expected.count)
    assert bool(torch.isfinite(got.mean).all())
    assert not bool(torch.isfinite(losses).all())


def test_missing_label_hides_its_logits(backend: str) -> None:
    layout = TaskLayout(["a", "b", "c"], [1, 2, 3])
    logits = torch.tensor([[NAN, INF, 0, NAN, -INF, INF], [1, 2, 3, 4, 5, 6]])
    targets = torch.tensor([[-100, -100, -100], [1, 1, 2]])
    losses, gradient = both(logits, targets, layout, backend)
    expected_losses, expected_gradient = both(logits[1:], targets[1:], layout, backend)
    assert torch.equal(losses, expected_losses)
    assert torch.equal(gradient[1:], expected_gradient)
    assert not gradient[0].any()


def test_a_class_ruled_out(backend: str) -> None:
    """Minus infinity masks a class: a finite loss for the others, and the row is recorded."""
    layout = TaskLayout(["two", "three"], [2, 3])
    data_map = DataMap(2, layout)
    logits = torch.tensor([[-INF, 1.0, 0.0, -INF, 0.0], [2.0, -INF, -INF, 0.0, -INF]])
    multitask_cross_entropy(
        logits,
        torch.tensor([[1, 2], [0, 1]]),
        layout,
        data_map=data_map,
        sample_ids=torch.tensor([0, 1]),
        backend=backend,
    )
    torch.testing.assert_close(data_map.mean, torch.tensor([[1.0, 0.5], [1.0, 1.0]]))
    assert data_map.num_rejected == 0
