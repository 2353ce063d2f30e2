"""Gradients that a forward pass has left final: what their backward passes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pymtg import _cpp
from pymtg.errors import BackendError


class _Once(torch.autograd.Function):
    """The identity; its gradient is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, name: str) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        raise BackendError(
            f"{ctx.name} is differentiable once; its gradient (create_graph=True) has no derivative here"
        )


def once(gradient: Tensor, dtype: torch.dtype, name: str = "multitask_cross_entropy") -> Tensor:
    """Return the gradient in `dtype`. Its derivative is an error: autograd would take it for a constant."""
    if gradient.dtype != dtype:
        gradient = gradient.to(dtype)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient
    return _Once.apply(gradient.detach().requires_grad_(), name)  # type: ignore[no-any-return, no-untyped-call]


def to_save(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor that autograd can save: of one made in inference mode, a copy."""
    if tensor is None or torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    return tensor.clone()


def known_ones(upstream: Tensor) -> bool:
    """Whether it is free to see that every entry is one: in eager mode, on the CPU."""
    if torch.compiler.is_compiling() or not upstream.is_cpu or not upstream.is_contiguous():
        return False
    return _cpp.all_ones(upstream)


def in_backward() -> bool:
    """Whether autograd is running a backward pass: a forward seen then is a checkpointed one, computed again."""
    return torch._C._current_graph_task_id() != -1


def used_once() -> bool:
    """Whether the running backward pass is the last one over its graph, so that what was saved may be changed."""
    if torch.compiler.is_compiling():
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()
