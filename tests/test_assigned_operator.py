"""The operator behind assigned_cross_entropy: the compiler, autograd's rules, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _cases import random_layout
from _heads import Heads, random_heads
from torch import Tensor

from pymtg import TaskLayout, set_backend
from pymtg import _ops as ops
from pymtg.errors import BackendError, InvalidArgumentError, InvalidTypeError
from pymtg.functional import assigned_cross_entropy


@pytest.fixture(params=[False, True], ids=["a draw", "a draw a row"])
def per_row(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def heads(per_row: bool, generator: torch.Generator) -> Heads:
    layout = random_layout([1, 2, 3, *[1] * 24, *[2] * 24], generator, weighted=True)
    return random_heads(layout, 3, 19, generator, per_row=per_row, missing="some")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strides", ["plain", "heads inside rows", "columns first"])
@pytest.mark.parametrize("need_gradient", [False, True])
def test_opcheck(
    dtype: torch.dtype, strides: str, need_gradient: bool, per_row: bool, backend: str, generator: torch.Generator
) -> None:
    layout = random_layout([1, 2, 3, *[1] * 24], generator, weighted=True)
    heads = random_heads(layout, 3, 7, generator, per_row=per_row, dtype=dtype, strides=strides)
    torch.library.opcheck(
        ops.assigned_cross_entropy,
        (heads.logits.detach(), heads.targets, heads.assignment.detach(), layout.handle, -100, backend, need_gradient),
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
def test_compile(engine: str, heads: Heads, backend: str) -> None:
    torch.compiler.reset()

    def objective(features: Tensor, weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        total, losses = assigned_cross_entropy(
            features @ weight, heads.targets, theta.softmax(-1), heads.layout, backend=backend
        )
        return 2 * total, losses

    leaves = (
        torch.randn(3, 19, 5, requires_grad=True),
        torch.randn(3, 5, heads.layout.num_logits, requires_grad=True),
        heads.assignment,
    )
    expected, got = objective(*leaves), torch.compile(objective, fullgraph=True, backend=engine)(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(got[0], leaves), torch.autograd.grad(expected[0], leaves), rtol=1e-4, atol=1e-5
    )
    torch.compiler.reset()


def call(heads: Heads, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return assigned_cross_entropy(heads.logits, heads.targets, heads.assignment, heads.layout, backend=backend)


def test_second_backward_gives_the_same(heads: Heads, backend: str) -> None:
    total, _ = call(heads, backend)
    total.backward(retain_graph=True)
    first = heads.logits.grad.clone(), heads.assignment.grad.clone()
    heads.logits.grad.zero_()  # as an optimizer may: not the saved gradients
    heads.assignment.grad.zero_()
    total.backward()
    assert torch.equal(heads.logits.grad, first[0])
    assert torch.equal(heads.assignment.grad, first[1])
    assert first[0].any()
    assert first[1].any()


@pytest.mark.parametrize("of", ["logits", "assignment"])
def test_double_backward_is_refused(of: str, heads: Heads, backend: str) -> None:
    total, _ = call(heads, backend)
    leaf = getattr(heads, of)
    (gradient,) = torch.autograd.grad(2 * total, leaf, create_graph=True)
    with pytest.raises(BackendError, match=r"^assigned_cross_entropy is differentiable once"):
        (gradient.square().sum() + leaf.square().sum()).backward()
    for asked in (heads.logits, heads.assignment):
        with pytest.raises(BackendError, match=r"^assigned_cross_entropy is differentiable once"):
            torch.autograd.grad(gradient.square().sum() + asked.square().sum(), asked)


@pytest.mark.parametrize("of", ["logits", "assignment"])
def test_many_backward_passes_as_one(of: str, heads: Heads, backend: str) -> None:
    total, _ = call(heads, backend)
    leaf, many = getattr(heads, of), torch.randn(3)
    expected = torch.stack([torch.autograd.grad(total, leaf, one, retain_graph=True)[0] for one in many])
    got = torch.autograd.grad(total, leaf, many, retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(got, expected)
    got = torch.vmap(lambda one: torch.autograd.grad(total, leaf, one, retain_graph=True)[0])(many)
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, as it makes duals
@pytest.mark.parametrize("of", ["logits", "assignment"])
def test_forward_mode_is_refused(of: str, heads: Heads, backend: str) -> None:
    given = {"logits": heads.logits.detach(), "assignment": heads.assignment.detach()}

    def total(values: Tensor) -> Tensor:
        own = given | {of: values}
        return assigned_cross_entropy(own["logits"], heads.targets, own["assignment"], heads.layout, backend=backend)[0]

    with pytest.raises(BackendError, match=f"{of} must not carry a tangent"):
        torch.func.jvp(total, (given[of],), (torch.ones_like(given[of]),))


def test_without_gradient(heads: Heads, backend: str) -> None:
    expected = call(heads, backend)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            total, losses = call(heads, backend)
        assert not total.requires_grad
        assert torch.equal(total, expected[0])
        assert torch.equal(losses, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, heads: Heads, backend: str) -> None:
    weight = torch.randn(3, 5, heads.layout.num_logits, requires_grad=True)
    features = torch.randn(3, 19, 5)
    with torch.autocast("cpu", dtype=dtype):
        logits = torch.bmm(features, weight)
        assert logits.dtype == dtype
        total, losses = assigned_cross_entropy(logits, heads.targets, heads.assignment, heads.layout, backend=backend)
    assert total.dtype == losses.dtype == torch.float32
    total.backward()
    assert weight.grad.dtype == torch.float32
    assert bool(weight.grad.isfinite().all())


def test_the_layout_may_go_before_the_backward_pass(backend: str, generator: torch.Generator) -> None:
    heads = random_heads(TaskLayout(["a", "b"], [1, 3]), 2, 5, generator)
    total, _ = call(heads, backend)
    del heads.layout
    total.backward()
    assert heads.logits.grad.any()


def test_set_backend_counts(heads: Heads) -> None:
    set_backend("reference")
    try:
        expected = call(heads)
    finally:
        set_backend(None)
    assert torch.equal(expected[1], call(heads, "reference")[1])


LAYOUT = TaskLayout(["digit", "odd"], [10, 1])
GOOD: dict[str, Any] = {
    "logits": torch.zeros(3, 4, 11),
    "targets": torch.tensor([[3, 1], [9, 0], [0, 1], [5, 0]]),
    "assignment": torch.full((2, 3), 1 / 3),
}


def label(row: int, task: int, value: int) -> Tensor:
    targets = GOOD["targets"].clone()
    targets[row, task] = value
    return targets


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "label too large": (
        {"targets": label(1, 0, 10)},
        InvalidArgumentError,
        "targets must be 0..9 or ignore_index for task 'digit'; row 1, column 0 holds 10",
    ),
    "label negative": ({"targets": label(3, 1, -1)}, InvalidArgumentError, "row 3, column 1 holds -1"),
    "logits of one head": (
        {"logits": torch.zeros(4, 11)},
        InvalidArgumentError,
        r"logits must be \[K, B, 11\] .*; got \[4, 11\]",
    ),
    "no head": (
        {"logits": torch.zeros(0, 4, 11), "assignment": torch.zeros(2, 0)},
        InvalidArgumentError,
        r"logits must be \[K, B, 11\] for this layout, K at least 1; got \[0, 4, 11\]",
    ),
    "logits too narrow": ({"logits": torch.zeros(3, 4, 10)}, InvalidArgumentError, r"got \[3, 4, 10\]"),
    "logits integers": ({"logits": torch.zeros(3, 4, 11).int()}, InvalidTypeError, "logits must have one of"),
    "rows apart": ({"logits": torch.zeros(3, 5, 11)}, InvalidArgumentError, r"targets must be \[5, 2\].*got \[4, 2\]"),
    "targets floats": ({"targets": torch.zeros(4, 2)}, InvalidTypeError, "targets must have one of the dtypes"),
    "targets elsewhere": (
        {"targets": GOOD["targets"].to("meta")},
        InvalidArgumentError,
        "targets must be on the logits' device cpu; they are on meta",
    ),
    "assignment turned": (
        {"assignment": torch.zeros(3, 2)},
        InvalidArgumentError,
        r"assignment must be \[2, 3\], or \[4, 2, 3\] for one per row; got \[3, 2\]",
    ),
    "assignment of other rows": (
        {"assignment": torch.zeros(5, 2, 3)},
        InvalidArgumentError,
        r"one per row; got \[5, 2, 3\]",
    ),
    "assignment integers": (
        {"assignment": torch.ones(2, 3).long()},
        InvalidTypeError,
        "assignment must have one of the dtypes float32, float64, float16, bfloat16; got torch.int64",
    ),
    "assignment a list": ({"assignment": [[1.0]]}, InvalidTypeError, "assignment must be a tensor; got list"),
    "assignment elsewhere": (
        {"assignment": torch.zeros(2, 3, device="meta")},
        InvalidArgumentError,
        "assignment must be on the logits' device cpu; it is on meta",
    ),
    "layout": ({"layout": [10, 1]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
    "regression": (
        {"layout": TaskLayout(["digit", "depth"], [10, 1], kinds=["classification", "regression"])},
        InvalidArgumentError,
        "'depth' is a regression",
    ),
    "ignore_index": ({"ignore_index": 1.0}, InvalidTypeError, "ignore_index must be an integer; got 1.0"),
    "backend": ({"backend": "tpu"}, InvalidArgumentError, "backend must be one of .*; got 'tpu'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, backend: str) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        assigned_cross_entropy(**{"layout": LAYOUT, "backend": backend, **GOOD, **changes})
