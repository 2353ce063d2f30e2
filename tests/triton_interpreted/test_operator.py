"""The loss as an operator on this backend: autograd, compilation, checkpointing, heads, trainers."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from _cases import Case, random_case, random_layout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg import _linear_ops as linear_ops
from pymtg import _ops as ops
from pymtg.errors import BackendError
from pymtg.functional import (
    assigned_cross_entropy,
    linear_multitask_cross_entropy,
    multitask_cross_entropy,
    weighted_linear_multitask_cross_entropy,
    weighted_multitask_cross_entropy,
)


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    return random_case(random_layout([1, 2, 3, 1], generator, weighted=True), 5, generator)


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(case: Case, recording: bool, dtype: torch.dtype) -> None:
    logits, data_map, ids = case.logits.detach().to(dtype), DataMap(9, case.layout), torch.arange(5)
    state = tuple(data_map.state) if recording else (None, None, None)
    arguments = (logits, case.targets, None, ids if recording else None, *state, case.layout.handle, -100, "triton")
    for need_gradient in (False, True):
        torch.library.opcheck(ops.multitask_cross_entropy, (*arguments, need_gradient))
    _, left = ops.multitask_cross_entropy(*arguments, True)
    for upstream, weights in ((case.upstream, None), (torch.tensor(2.0), case.upstream)):
        torch.library.opcheck(
            ops.recomputed_gradient,
            (left, logits, case.targets, upstream, weights, case.layout.handle, -100, "triton"),
        )


def test_second_backward_and_accumulation(case: Case) -> None:
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        result = function(case.logits, case.targets, case.layout, backend="triton")
        total = result[0] if isinstance(result, tuple) else result.sum()
        case.logits.grad = None
        total.backward(retain_graph=True)
        first = case.logits.grad.clone()
        case.logits.grad.zero_()
        total.backward(retain_graph=True)
        assert torch.equal(case.logits.grad, first)
        total.backward()
        torch.testing.assert_close(case.logits.grad, 2 * first)
        (gradient,) = torch.autograd.grad(
            function(case.logits, case.targets, case.layout, backend="triton")[0].sum(), case.logits, create_graph=True
        )
        with pytest.raises(BackendError, match="differentiable once"):
            gradient.square().sum().backward()


def test_logits_changed_in_place_are_noticed(case: Case) -> None:
    """The backward pass reads them: autograd must say so, not give another gradient."""
    logits = case.logits * 1
    losses = multitask_cross_entropy(logits, case.targets, case.layout, backend="triton")
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_layout_may_go_before_the_backward_pass(case: Case) -> None:
    def total() -> Tensor:
        layout = TaskLayout.from_dict(case.layout.to_dict())
        return weighted_multitask_cross_entropy(case.logits, case.targets, layout, backend="triton")[0]

    result = total()
    gc.collect()
    result.backward()
    assert case.logits.grad is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_counts_once(case: Case, use_reentrant: bool) -> None:
    data_map, weight = DataMap(5, case.layout), torch.ones((), requires_grad=True)

    def step(logits: Tensor) -> Tensor:
        return MultiTaskLoss(case.layout, data_map, backend="triton")(logits * weight, case.targets, torch.arange(5))

    checkpoint(step, case.logits, use_reentrant=use_reentrant).backward()
    assert bool((data_map.count == 1).all())
    assert weight.grad is not None


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_step(generator: torch.Generator) -> None:
    """A whole step under fullgraph=True and autocast: the state equal bit for bit."""
    layout = TaskLayout(["a", "b"], [1, 3], [2.0, None])
    models, maps = [], []
    for _ in range(2):
        torch.manual_seed(0)
        maps.append(DataMap(8, layout))
        models.append(nn.ModuleList([nn.Linear(5, 4), MultiTaskLoss(layout, maps[-1], [1.0, 2.0], backend="triton")]))

    def step(model: nn.ModuleList, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model[0](x)
        return model[1](logits, y, ids)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rows in (4, 7):
        x, ids = torch.randn(rows, 5, generator=generator), torch.randint(8, (rows,), generator=generator)
        y = torch.randint(2, (rows, 2), generator=generator)
        expected, got = step(models[0], x, y, ids), compiled(models[1], x, y, ids)
        torch.testing.assert_close(got, expected)
        expected.backward()
        got.backward()
    torch.testing.assert_close(models[1][0].weight.grad, models[0][0].weight.grad)
    for ours, theirs in zip(maps[1].state, maps[0].state, strict=True):
        assert torch.equal(ours, theirs)


def test_targets_made_in_inference_mode(case: Case) -> None:
    """The backward pass reads them, and autograd saves no such tensor."""
    with torch.inference_mode():
        targets, weights = case.targets.clone(), torch.ones(case.layout.num_tasks)
    options = {"ignore_index": case.ignore_index, "backend": "triton"}
    losses = multitask_cross_entropy(case.logits, targets, case.layout, **options)
    total, _ = weighted_multitask_cross_entropy(case.logits, targets, case.layout, weights, **options)
    (expected,) = torch.autograd.grad(
        multitask_cross_entropy(case.logits, case.targets, case.layout, **options).sum(), case.logits
    )
    for found in (losses.sum(), total):
        torch.testing.assert_close(torch.autograd.grad(found, case.logits)[0], expected)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_heads_under_an_assignment(case: Case, by_row: bool, dtype: torch.dtype, generator: torch.Generator) -> None:
    logits = torch.randn(3, 5, case.layout.num_logits, generator=generator).to(dtype)
    shares = torch.rand((5, 4, 3) if by_row else (4, 3), generator=generator)
    results = []
    for backend in ("triton", "reference"):
        x, z = logits.clone().requires_grad_(), shares.clone().requires_grad_()
        total, losses = assigned_cross_entropy(x, case.targets, z, case.layout, backend=backend)
        (total * 2).backward()
        results.append((total.detach(), losses, x.grad, z.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_linear_head_and_a_map_in_host_memory(weighted: bool, generator: torch.Generator) -> None:
    """Chunks of strided targets, maps of batches: against the reference."""
    layout = random_layout([1, 4, 2, 1], generator, weighted=True)
    case = random_case(layout, 6, generator)
    x, weight = torch.randn(6, 3, generator=generator), torch.randn(layout.num_logits, 3, generator=generator)
    x[2] = torch.inf
    ids = torch.tensor([0, 1, 1, 2, 0, 0])
    function = weighted_linear_multitask_cross_entropy if weighted else linear_multitask_cross_entropy
    results, maps = [], []
    for backend in ("triton", "reference"):
        tensors = x[3:].clone().requires_grad_(), weight.clone().requires_grad_()
        maps.append(DataMap(3, layout, storage="cpu" if backend == "triton" else None))
        result = function(*tensors, None, case.targets[3:], layout, max_columns=5, backend=backend)
        total = result[0] if weighted else (result * case.upstream).sum()
        results.append([total.detach(), *torch.autograd.grad(total, tensors)])
        options = {"data_map": maps[-1], "sample_ids": ids, "backend": backend}
        function(x, weight, None, case.targets, layout, **options)
        logits = case.logits.detach().clone()
        logits[4, 0] = torch.nan
        multitask_cross_entropy(logits, case.targets, layout, **options)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(maps[0].count, maps[1].count)
    assert maps[0].num_rejected == maps[1].num_rejected == 2
    torch.testing.assert_close(maps[0].mean, maps[1].mean, rtol=1e-5, atol=2e-6)


HEADS = [linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy]


@pytest.mark.parametrize("recording", [False, True])
def test_opcheck_of_the_linear_head(case: Case, recording: bool, generator: torch.Generator) -> None:
    x, weight = torch.randn(5, 3, generator=generator), torch.randn(7, 3, generator=generator)
    state = (torch.tensor([1, 0, 1, 3, 8]), *DataMap(9, case.layout).state) if recording else (None,) * 4
    inputs, rest = (x, weight, None, case.targets), (case.layout.handle, -100, 4, "triton")
    for need in (False, True):
        torch.library.opcheck(linear_ops.linear_cross_entropy, (*inputs, *state, *rest, need))
    torch.library.opcheck(
        linear_ops.linear_cross_entropy_total, (*inputs, case.upstream, *state, *rest, True, True, False)
    )
    _, left = linear_ops.linear_cross_entropy(*inputs, None, None, None, None, *rest, True)
    torch.library.opcheck(
        linear_ops.linear_cross_entropy_gradient, (left, *inputs, case.upstream, *rest, True, True, False)
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("function", HEADS)
def test_compiled_linear_head(function: Any, generator: torch.Generator) -> None:
    """Two chunks under fullgraph=True and autocast, checkpointed: gradients as in eager mode, the state bit for bit."""
    torch.compiler.reset()
    layout = TaskLayout(["a", "b"], [1, 3], [2.0, None])
    maps, start = [DataMap(8, layout) for _ in range(2)], torch.randn(4, 5, generator=generator)
    weights = [start.clone().requires_grad_() for _ in maps]

    def step(x: Tensor, y: Tensor, ids: Tensor, weight: Tensor, data_map: DataMap) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result = function(
                x, weight, None, y, layout, data_map=data_map, sample_ids=ids, max_columns=3, backend="triton"
            )
        return result.square().sum() if isinstance(result, Tensor) else 2 * result[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rows in (4, 7):
        x, ids = torch.randn(rows, 5, generator=generator), torch.randint(8, (rows,), generator=generator)
        y = torch.randint(2, (rows, 2), generator=generator)
        expected = step(x, y, ids, weights[0], maps[0])
        got = checkpoint(compiled, x, y, ids, weights[1], maps[1], use_reentrant=False)
        torch.testing.assert_close(got, expected)
        expected.backward()
        got.backward()
    torch.testing.assert_close(weights[1].grad, weights[0].grad)
    assert int(maps[1].count[:, 0].sum()) == 4 + 7
    for ours, theirs in zip(maps[1].state, maps[0].state, strict=True):
        assert torch.equal(ours, theirs)


def test_backend_by_name() -> None:
    assert "triton" in pymtg.available_backends()
    before = pymtg.get_backend()
    assert before in ("auto", "triton")
    pymtg.set_backend("triton")
    try:
        losses = multitask_cross_entropy(torch.zeros(2, 1), torch.tensor([[1], [5]]), TaskLayout.binary(["a"]))
        assert losses.isnan().tolist() == [True], "the C++ backend would have raised"
        with pytest.raises(pymtg.errors.InvalidArgumentError):
            pymtg.check_errors()
    finally:
        pymtg.set_backend(before)
