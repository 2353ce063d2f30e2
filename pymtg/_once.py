"""Gradients that a forward pass has left final: what their backward passes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pymtg import _cpp
from pymtg.errors import BackendError


class _Once(torch.autograd.Function):
    """The identity, whose gradient is refused; to autograd it follows from `origins`, whose gradients thus need its."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, name: str, *origins: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise BackendError(
            f"{ctx.name} is differentiable once; its gradient (create_graph=True) has no derivative here"
        )


def once(
    gradient: Tensor, node: Any, upstream: Tensor, dtype: torch.dtype, name: str = "multitask_cross_entropy"
) -> Tensor:
    """Return the gradient in `dtype`. Its derivative is an error: autograd would take it for a constant.

    `node` is the context of the backward pass that returns it, `upstream` what that was given. Asked for the derivative
    in some tensors only, as by :func:`torch.autograd.grad`, autograd visits no node that leads to none of them.
    """
    if gradient.dtype != dtype:
        gradient = gradient.to(dtype)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient
    if batched(upstream):
        raise BackendError(f"{name} is differentiable once; many backward passes as one take no create_graph=True")
    own = gradient.detach().requires_grad_()
    return _Once.apply(own, name, upstream, *_leaves(node))  # type: ignore[no-any-return, no-untyped-call]


def _leaves(node: Any) -> list[Tensor]:
    """Return the tensors that the graph behind a node begins at."""
    found: list[Tensor] = []
    seen, ahead = {None}, [node]
    while ahead:
        for before, _ in ahead.pop().next_functions:
            if before in seen:
                continue
            seen.add(before)
            if before.name() == "torch::autograd::AccumulateGrad":
                found.append(before.variable)
            else:
                ahead.append(before)
    return found


def to_save(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor that autograd can save: of one made in inference mode, a copy."""
    if tensor is None or torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    return tensor.clone()


def known_ones(upstream: Tensor) -> bool:
    """Whether it is free to see that every entry is one: in eager mode, on the CPU."""
    if torch.compiler.is_compiling() or not upstream.is_cpu or batched(upstream) or not upstream.is_contiguous():
        return False
    return _cpp.all_ones(upstream)


def batched(upstream: Tensor) -> bool:
    """Whether it stands for many whose backward passes run as one: torch's ``is_grads_batched``, TorchJD."""
    if torch.compiler.is_compiling():
        return False
    kinds = torch._C._functorch
    return kinds.is_batchedtensor(upstream) or kinds.is_legacy_batchedtensor(upstream)  # of vmap, of is_grads_batched


def detached(upstream: Tensor) -> Tensor:
    """Return it without its graph; as it is where it stands for many, since `is_grads_batched` knows no detaching."""
    return upstream if batched(upstream) else upstream.detach()


def in_backward() -> bool:
    """Whether autograd is running a backward pass: a forward seen then is a checkpointed one, computed again."""
    return torch._C._current_graph_task_id() != -1


def used_once() -> bool:
    """Whether the running backward pass is the last one over its graph, so that what was saved may be changed."""
    if torch.compiler.is_compiling():
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()
