"""The loss as an operator: autograd, checkpointing, autocast, inference, layouts that are gone."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from _cases import CLASSES, Case, random_case, random_layout
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg import _ops as ops
from pymtg.errors import BackendError
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    layout = random_layout([1, 2, 3, *[1] * 24, *[2] * 24], generator, weighted=True)
    return random_case(layout, 19, generator)


def gradient_of(case: Case, backend: str) -> Tensor:
    losses = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    return torch.autograd.grad((losses * case.upstream).sum(), case.logits)[0]


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strides", ["plain", "transposed"])
def test_opcheck(case: Case, recording: bool, dtype: torch.dtype, strides: str, backend: str) -> None:
    logits = case.logits.detach().to(dtype)
    logits = logits.T.contiguous().T if strides == "transposed" else logits
    data_map = DataMap(30, case.layout)
    ids = torch.arange(19) + 5
    state = tuple(data_map.state) if recording else (None, None, None)
    for need_gradient in (False, True):
        torch.library.opcheck(
            ops.multitask_cross_entropy,
            (
                *(logits, case.targets, case.upstream.abs(), ids if recording else None, *state),
                *(case.layout.handle, -100, backend, need_gradient),
            ),
        )
    wide = ops.arithmetic_dtype(dtype)
    gradient = torch.randn(19, case.layout.num_logits, dtype=wide)
    torch.library.opcheck(ops.scale_gradient, (gradient, case.upstream.to(wide), case.layout.handle, backend))


def test_second_backward_gives_the_same(case: Case, backend: str) -> None:
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        result = function(case.logits, case.targets, case.layout, backend=backend)
        total = result[0] if isinstance(result, tuple) else result.sum()
        case.logits.grad = None
        total.backward(retain_graph=True)
        first = case.logits.grad.clone()
        case.logits.grad.zero_()  # as an optimizer may: not the saved gradient
        total.backward()
        assert torch.equal(case.logits.grad, first)
        assert first.any()


def test_backward_after_backward_needs_the_graph(case: Case, backend: str) -> None:
    losses = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    losses.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        losses.sum().backward()


def test_double_backward_is_refused(case: Case, backend: str) -> None:
    """An error, also where something else in the sum has a derivative: never a constant in silence."""
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        result = function(case.logits, case.targets, case.layout, backend=backend)
        total = result[0] if isinstance(result, tuple) else result.sum()
        (gradient,) = torch.autograd.grad(2 * total, case.logits, create_graph=True)
        with pytest.raises(BackendError, match="multitask_cross_entropy is differentiable once"):
            (gradient.square().sum() + case.logits.square().sum()).backward()


@pytest.mark.parametrize("of", ["weight", "scale"])
def test_a_second_derivative_in_some_tensors_only_is_refused(of: str, case: Case, backend: str) -> None:
    """Autograd then runs only what leads to them: the gradient has to, or it were a constant in silence."""
    leaves = {
        "weight": torch.randn(7, case.layout.num_logits, requires_grad=True),
        "scale": torch.ones(()).requires_grad_(),
    }
    logits = torch.randn(19, 7) @ leaves["weight"]
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        result = function(logits, case.targets, case.layout, backend=backend)
        total = (result[0] if isinstance(result, tuple) else result.sum()) * leaves["scale"]
        (gradient,) = torch.autograd.grad(total, leaves["weight"], create_graph=True)
        with pytest.raises(BackendError, match="multitask_cross_entropy is differentiable once"):
            torch.autograd.grad(total + gradient.square().sum(), leaves[of])


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_many_backward_passes_as_one(way: str, case: Case, backend: str) -> None:
    """As jacobian(vectorize=True) has them, and TorchJD."""
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        result = function(case.logits, case.targets, case.layout, backend=backend)
        losses = result[0] if isinstance(result, tuple) else result
        many = torch.randn(3, *losses.shape)
        each = [torch.autograd.grad(losses, case.logits, one, retain_graph=True)[0] for one in many]

        def grad(upstream: Tensor, losses: Tensor = losses, batched: bool = False) -> Tensor:
            return torch.autograd.grad(losses, case.logits, upstream, retain_graph=True, is_grads_batched=batched)[0]

        got = torch.vmap(grad)(many) if way == "vmap" else grad(many, batched=True)
        torch.testing.assert_close(got, torch.stack(each))
        with pytest.raises(BackendError, match="multitask_cross_entropy is differentiable once; many backward passes"):
            torch.autograd.grad(losses, case.logits, many, is_grads_batched=True, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, as it makes duals
def test_forward_mode_is_refused(case: Case, backend: str) -> None:
    """Torch would give a tangent of zero for an operator without such a derivative."""

    def total(logits: Tensor) -> Tensor:
        return multitask_cross_entropy(logits, case.targets, case.layout, backend=backend).sum()

    logits = case.logits.detach()
    with pytest.raises(BackendError, match="logits must not carry a tangent"):
        torch.func.jvp(total, (logits,), (torch.ones_like(logits),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(BackendError, match="logits must not carry a tangent"):
        total(torch.autograd.forward_ad.make_dual(logits, torch.ones_like(logits)))


def test_gradients_accumulate(case: Case, backend: str) -> None:
    expected = gradient_of(case, backend)
    for _ in range(3):
        losses = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
        (losses * case.upstream).sum().backward()
    torch.testing.assert_close(case.logits.grad, 3 * expected)


def test_two_losses_of_the_same_logits(case: Case, backend: str) -> None:
    expected = gradient_of(case, backend)
    once = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    again = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    (gradient,) = torch.autograd.grad((once * case.upstream).sum() + (again * case.upstream).sum(), case.logits)
    torch.testing.assert_close(gradient, 2 * expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None], ids=["no_grad", "inference", "constant"])
def test_without_gradient(case: Case, mode: Any, backend: str) -> None:
    expected = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    data_map = DataMap(19, case.layout)
    arguments = {"data_map": data_map, "sample_ids": torch.arange(19), "backend": backend}
    if mode is None:
        losses = multitask_cross_entropy(case.logits.detach(), case.targets, case.layout, **arguments)
    else:
        with mode():
            losses = multitask_cross_entropy(case.logits, case.targets, case.layout, **arguments)
    assert torch.equal(losses, expected)
    assert not losses.requires_grad
    assert bool((data_map.count == 1).all())


def test_map_made_in_inference_mode(case: Case, backend: str) -> None:
    with torch.inference_mode():
        data_map = DataMap(19, case.layout)
    multitask_cross_entropy(
        case.logits, case.targets, case.layout, data_map=data_map, sample_ids=torch.arange(19), backend=backend
    ).sum().backward()
    assert bool((data_map.count == 1).all())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_counts_once(case: Case, use_reentrant: bool, backend: str) -> None:
    plain, checkpointed = DataMap(19, case.layout), DataMap(19, case.layout)
    ids = torch.arange(19)
    weight = torch.ones((), requires_grad=True)

    def step(logits: Tensor, data_map: DataMap) -> Tensor:
        loss = MultiTaskLoss(case.layout, data_map, backend=backend)
        return loss(logits * weight, case.targets, ids)

    step(case.logits, plain).backward()
    expected = (case.logits.grad.clone(), weight.grad.clone())
    case.logits.grad = weight.grad = None
    checkpoint(step, case.logits, checkpointed, use_reentrant=use_reentrant).backward()
    assert torch.equal(checkpointed.state.words, plain.state.words)
    assert torch.equal(checkpointed.state.counts, plain.state.counts)
    torch.testing.assert_close((case.logits.grad, weight.grad), expected)
    step(case.logits, plain)
    assert bool((plain.count == 2).all()), "recording goes on after a backward pass"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b", "c"], [1, 4, 2])
    linear = torch.nn.Linear(8, layout.num_logits)
    targets = torch.tensor([[1, 3, 0], [0, 2, 1]])
    with torch.autocast("cpu", dtype):
        logits = linear(torch.randn(2, 8, generator=generator))
        losses = multitask_cross_entropy(logits, targets, layout, backend=backend)
    assert logits.dtype == dtype
    assert losses.dtype == torch.float32
    expected = multitask_cross_entropy(logits.float(), targets, layout, backend=backend)
    assert torch.equal(losses, expected)
    losses.sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


def test_layout_may_go_before_the_backward_pass(case: Case, backend: str) -> None:
    def losses() -> Tensor:
        layout = TaskLayout.from_dict(case.layout.to_dict())
        return multitask_cross_entropy(case.logits, case.targets, layout, backend=backend)

    result = losses()
    gc.collect()
    (gradient,) = torch.autograd.grad((result * case.upstream).sum(), case.logits)
    assert torch.equal(gradient, gradient_of(case, backend))


def test_layouts_are_not_kept(case: Case) -> None:
    layout = TaskLayout.from_dict(case.layout.to_dict())
    handle = layout.handle
    multitask_cross_entropy(case.logits, case.targets, layout, backend="cpp").sum().backward()
    del layout
    gc.collect()
    with pytest.raises(KeyError):
        TaskLayout.with_handle(handle)


def test_threads_with_maps_of_their_own(case: Case, backend: str) -> None:
    ids, errors = torch.arange(19), []
    maps = [DataMap(19, case.layout) for _ in range(4)]

    def work(data_map: DataMap) -> None:
        try:
            for _ in range(20):
                logits = case.logits.detach().requires_grad_()
                multitask_cross_entropy(
                    logits, case.targets, case.layout, data_map=data_map, sample_ids=ids, backend=backend
                ).sum().backward()
        except Exception as error:  # a thread's exception would be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(data_map,)) for data_map in maps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for data_map in maps:
        assert bool((data_map.count == 20).all())
        assert torch.equal(data_map.state.words, maps[0].state.words)


def test_threads_change_no_bit(generator: torch.Generator) -> None:
    """Losses, gradients and maps, duplicates among the ids: the same bits with 1, 2 and 3 threads, run after run."""
    for name in ("ones-100", "primes", "ones-mixed-twos"):
        layout = random_layout(CLASSES[name], generator, weighted=True)
        case = random_case(layout, 1500, generator, missing="some")
        ids = torch.randint(700, (1500,), generator=generator)
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            data_map = DataMap(700, layout, missing=True)
            losses = multitask_cross_entropy(
                case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend="cpp"
            )
            (gradient,) = torch.autograd.grad((losses * case.upstream).sum(), case.logits)
            results.append((losses.detach(), gradient, *data_map.state))
        torch.set_num_threads(1)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
