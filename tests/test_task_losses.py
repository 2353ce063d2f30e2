"""Losses outside the fused operator, against plain float64 definitions in loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pymtg import TaskLayout
from pymtg._task_losses import column_losses, row_losses
from pymtg._task_split import columns_of, pick, split_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError


def with_gaps(targets: Tensor, generator: torch.Generator, share: float = 0.3) -> Tensor:
    return targets.masked_fill(torch.rand(targets.shape, generator=generator) < share, math.nan)


def truth(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """[K, B] by loops over networks, rows and entries."""
    K, B = outputs.shape[:2]
    flat, known = outputs.double().unsqueeze(-1).flatten(2), targets.double().unsqueeze(-1).flatten(1)
    count = max(1, int((~known.isnan()).sum()))
    result = torch.zeros(K, B, dtype=torch.float64)
    for k in range(K):
        for b in range(B):
            for value, target in zip(flat[k, b].tolist(), known[b].tolist(), strict=True):
                if not math.isnan(target):
                    gap = value - target
                    result[k, b] += (gap * gap if kind == "mse" else abs(gap)) / count
    return result


@pytest.mark.parametrize("kind", ["mse", "l1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(deadline=None)
@given(shape=st.sampled_from([(1, 1), (2, 5), (3, 7, 1), (2, 4, 3), (3, 2, 2, 5, 3), (2, 0, 3)]), seed=st.integers(0))
def test_row_losses(kind: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    outputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    targets = with_gaps(torch.randn(shape[1:], generator=generator), generator)
    got = row_losses(kind, outputs, targets)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), truth(kind, outputs, targets), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_column_losses_are_the_row_losses_of_each_column(kind: str, generator: torch.Generator) -> None:
    outputs = torch.randn(3, 11, 7, generator=generator, dtype=torch.float64)
    targets = with_gaps(torch.randn(11, 7, generator=generator, dtype=torch.float64), generator)
    targets[:, 2] = math.nan
    got = column_losses(kind, outputs, targets)
    for t in range(7):
        torch.testing.assert_close(got[..., t], row_losses(kind, outputs[..., t], targets[:, t]))
        torch.testing.assert_close(got[..., t], row_losses(kind, outputs[..., t : t + 1], targets[:, t]))
    assert got[..., 2].eq(0).all()


def test_dense_cross_entropy(generator: torch.Generator) -> None:
    outputs = torch.randn(3, 4, 5, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (4, 6, 2), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = 255
    rows = row_losses("dense_cross_entropy", outputs, targets, ignore_index=255)
    assert rows.shape == (3, 4)
    for k in range(3):
        loss = torch.nn.functional.cross_entropy(outputs[k], targets, ignore_index=255)
        torch.testing.assert_close(rows[k].sum(), loss)
    (got,) = torch.autograd.grad(rows.sum(), outputs)
    every = sum(torch.nn.functional.cross_entropy(o, targets, ignore_index=255) for o in outputs)
    (want,) = torch.autograd.grad(every, outputs)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        row_losses("dense_cross_entropy", outputs.detach(), targets.to(torch.uint8), ignore_index=255), rows.detach()
    )


@pytest.mark.parametrize("kind", ["mse", "l1", "dense_cross_entropy"])
def test_gradcheck(kind: str, generator: torch.Generator) -> None:
    dense = kind == "dense_cross_entropy"
    shape = (2, 3, 4, 2) if dense else (2, 3, 2)
    outputs = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = with_gaps(torch.randn(3, 2, generator=generator, dtype=torch.float64), generator)
    if dense:
        targets = torch.randint(0, 4, (3, 2), generator=generator)
        targets[1, 0] = -100
    assert torch.autograd.gradcheck(lambda x: row_losses(kind, x, targets), (outputs,))
    if not dense:
        assert torch.autograd.gradcheck(lambda x: column_losses(kind, x, targets), (outputs,))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_missing_places_leave_no_trace(value: float, generator: torch.Generator) -> None:
    outputs = torch.randn(2, 4, 3, 5, generator=generator)
    targets = torch.randint(0, 3, (4, 5), generator=generator)
    targets[1, 2:] = -100
    outputs[:, 1, 0, 2:] = value
    outputs.requires_grad_()
    result = row_losses("dense_cross_entropy", outputs, targets)
    (gradient,) = torch.autograd.grad(result.sum(), outputs)
    assert torch.isfinite(result).all()
    assert torch.isfinite(gradient).all()
    assert gradient[:, 1, :, 2:].eq(0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_missing_targets_leave_no_trace(kind: str, value: float, generator: torch.Generator) -> None:
    outputs = torch.randn(2, 4, 3, generator=generator)
    targets = torch.randn(4, 3, generator=generator)
    targets[1] = math.nan
    outputs[:, 1] = value
    outputs.requires_grad_()
    for losses in (row_losses, column_losses):
        result = losses(kind, outputs, targets)
        (gradient,) = torch.autograd.grad(result.sum(), outputs)
        assert torch.isfinite(result).all()
        assert torch.isfinite(gradient).all()
        assert gradient[:, 1].eq(0).all()
        nothing = losses(kind, outputs, torch.full_like(targets, math.nan))
        assert nothing.eq(0).all()
        assert torch.autograd.grad(nothing.sum(), outputs)[0].eq(0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("huber", torch.zeros(1, 2), torch.zeros(2)), InvalidArgumentError, "kind must be one of 'mse', 'l1'"),
        (("mse", torch.zeros(1, 2), torch.zeros(3)), InvalidArgumentError, r"targets of shape \[3\]; got \[1, 2\]"),
        (("mse", torch.zeros(2), torch.zeros(2)), InvalidArgumentError, r"outputs must be \[K, ...\]"),
        (("mse", torch.zeros(1, 2), torch.zeros(2).long()), InvalidTypeError, "targets must be floating point"),
        (("l1", torch.zeros(1, 2).long(), torch.zeros(2)), InvalidTypeError, "outputs must be floating point"),
        (("dense_cross_entropy", torch.zeros(1, 2, 3), torch.zeros(2)), InvalidTypeError, "integer dtype"),
        (("dense_cross_entropy", torch.zeros(1, 2, 1), torch.zeros(2).long()), InvalidArgumentError, "C >= 2"),
        (("dense_cross_entropy", torch.zeros(1, 2, 3), torch.zeros(3).long()), InvalidArgumentError, r"got \[1, 2, 3"),
        (("dense_cross_entropy", torch.zeros(1, 2, 3), torch.tensor([0, 3])), InvalidArgumentError, "0..2.*got 3"),
    ],
)
def test_refused(arguments: tuple[str, Tensor, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        row_losses(*arguments)


def test_columns_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="kind must be one of 'mse', 'l1'; got 'dense_cross_entropy'"):
        column_losses("dense_cross_entropy", torch.zeros(1, 2, 3), torch.zeros(2, 3))
    with pytest.raises(InvalidArgumentError, match=r"targets \[B, n\]; got \[1, 2, 3\] and \[2\]"):
        column_losses("mse", torch.zeros(1, 2, 3), torch.zeros(2))


LAYOUT = TaskLayout(
    ["a", "x", "b", "y", "box"], [3, 1, 1, 1, 4], kinds=["classification", "regression"] * 2 + ["regression"]
)


def test_split() -> None:
    split = split_tasks(LAYOUT)
    assert (split.fused, dict(split.columns), dict(split.single)) == ((0, 2), {"mse": (1, 3)}, {4: "mse"})
    assert split.fused_layout == LAYOUT.select([0, 2])
    split = split_tasks(LAYOUT, {"y": "l1", "a": math.dist, "b": "dense_cross_entropy", "box": math.dist})
    assert (split.fused, split.fused_layout) == ((), None)
    assert dict(split.columns) == {"mse": (1,), "l1": (3,)}
    assert dict(split.single) == {0: math.dist, 2: "dense_cross_entropy", 4: math.dist}
    plain = TaskLayout.binary(["a", "b"])
    assert split_tasks(plain).fused_layout is plain


def test_picked_columns(generator: torch.Generator) -> None:
    values = torch.randn(2, 3, 10, generator=generator)
    for tasks in ([0], [1, 2], [0, 2], [3, 1], [4, 0]):
        columns = columns_of(LAYOUT, tasks)
        assert torch.equal(pick(values, columns), torch.cat([values[..., LAYOUT.columns(t)] for t in tasks], -1))
    assert pick(values, columns_of(LAYOUT, [1, 2])).untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({"z": "mse"}, InvalidArgumentError, "no task is named 'z'"),
        ({"a": "mse"}, InvalidArgumentError, "'dense_cross_entropy' or a function for the classification task 'a'"),
        ({"x": "cross_entropy"}, InvalidArgumentError, "'mse', 'l1' or a function for the regression task 'x'"),
        ({"x": 3}, InvalidTypeError, "losses must be names or functions; task 'x' has 3"),
        (["mse"], InvalidTypeError, "losses must be a mapping"),
    ],
)
def test_split_refuses(losses: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split_tasks(LAYOUT, losses)  # type: ignore[arg-type]


def test_a_class_in_uint8_that_minus_100_would_be(generator: torch.Generator) -> None:
    outputs, targets = torch.randn(1, 3, 200, 2, generator=generator), torch.randint(200, (3, 2), generator=generator)
    targets[1] = 156
    in_bytes = row_losses("dense_cross_entropy", outputs, targets.to(torch.uint8))
    assert torch.equal(in_bytes, row_losses("dense_cross_entropy", outputs, targets))
    assert in_bytes[0, 1] > 0
