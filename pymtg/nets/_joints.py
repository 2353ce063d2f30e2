"""What happens to gradients where branches join the trunk and heads join a branch; the forward is the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pymtg.errors import InvalidArgumentError, InvalidTypeError

Aggregator = Callable[[Tensor], Tensor]


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """Return `values` as they are; their gradient is multiplied by `factor` on the way back."""
    scaled: Tensor = _Scaled.apply(values, factor)  # type: ignore[no-untyped-call]
    return scaled


def fan_out(values: Tensor, copies: int, aggregator: Aggregator) -> Tensor:
    """Hand out `copies` copies of every row of `values` whose gradients the aggregator makes one of.

    Parameters
    ----------
    values
        ``[N, ...]``.
    copies
        How many.
    aggregator
        From the copies' gradients as a matrix ``[copies, n]``, one flattened gradient a row, to ``[n]``; called once
        for each of the N. Half-precision gradients reach it in float32. The backward raises InvalidTypeError where it
        returns no tensor and InvalidArgumentError for another shape.

    Returns
    -------
    Tensor
        ``[N, copies, ...]``, a view.
    """
    fanned: Tensor = _FannedOut.apply(values, copies, aggregator)  # type: ignore[no-untyped-call]
    return fanned


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _FannedOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, copies: int, aggregator: Aggregator) -> Tensor:
        ctx.aggregator = aggregator
        return values.unsqueeze(1).expand(-1, copies, *values.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if gradient.numel() == 0:
            return gradient.sum(1), None, None
        exact = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
        rows = [_aggregated(ctx.aggregator, matrix) for matrix in exact.flatten(2).unbind()]
        return torch.stack(rows).to(gradient.dtype).view_as(gradient[:, 0]), None, None


def _aggregated(aggregator: Aggregator, matrix: Tensor) -> Tensor:
    """Return one gradient ``[n]`` of a matrix ``[m, n]``, or raise a typed error."""
    gradient: Any = aggregator(matrix)
    if not isinstance(gradient, Tensor):
        raise InvalidTypeError(f"aggregator must return a tensor; got {type(gradient).__name__}")
    if gradient.shape != matrix.shape[1:]:
        raise InvalidArgumentError(
            f"aggregator must return [{matrix.shape[1]}], one gradient of a matrix {list(matrix.shape)}; "
            f"got {list(gradient.shape)}"
        )
    return gradient
