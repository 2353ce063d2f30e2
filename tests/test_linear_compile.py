"""The fused linear head under torch.compile(fullgraph=True): the same losses, gradients and maps as without."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pymtg import DataMap, TaskLayout, _faults, _linear_chunks, _linear_ops
from pymtg._backend import backend_named
from pymtg.errors import InvalidArgumentError, MissingLabelError, SampleIdError
from pymtg.functional import linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy

# What torch's compiler does itself, to every autograd.Function and in its own modules.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
ENGINES = ["aot_eager", "inductor"]
LAYOUT = TaskLayout(["a", "b", "c"], [1, 3, 2], [2.0, None, None])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(rows: int, generator: torch.Generator, *, missing: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Few samples, so that many stand in a batch twice."""
    targets = (torch.rand(rows, 3, generator=generator) * torch.tensor([2, 3, 2])).long()
    if missing:
        targets[torch.rand(rows, 3, generator=generator) < 0.3] = -100
    return torch.randn(rows, 5, generator=generator), targets, torch.randint(10, (rows,), generator=generator)


class Head:
    """Parameters, a map, and the objective of a training step: a chunk per task."""

    def __init__(self, generator: torch.Generator, *, weighted: bool, missing: bool = False, **options: Any) -> None:
        self.weight = torch.randn(6, 5, generator=generator).requires_grad_()
        self.bias = torch.randn(6, generator=generator).requires_grad_()
        self.scale = torch.rand(3, generator=generator).requires_grad_()
        self.map, self.weighted = DataMap(10, LAYOUT, missing=missing), weighted
        self.options = {"data_map": self.map, "max_columns": 3} | options
        self.amp = False

    def copy(self) -> Head:
        other = object.__new__(Head)
        other.__dict__ |= self.__dict__
        for name in ("weight", "bias", "scale"):
            setattr(other, name, getattr(self, name).detach().clone().requires_grad_())
        other.map = DataMap(10, LAYOUT, missing=self.map.missing)
        other.options = self.options | {"data_map": other.map}
        return other

    def __call__(self, inputs: Tensor, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
            head = (2 * inputs, self.weight, self.bias)  # exact, whatever compiles it
            if self.weighted:
                weights = torch.arange(3) / 2
                total, losses = weighted_linear_multitask_cross_entropy(
                    *head, targets, LAYOUT, weights, sample_ids=ids, **self.options
                )
                return 2 * total, losses
            losses = linear_multitask_cross_entropy(*head, targets, LAYOUT, sample_ids=ids, **self.options)
            return (losses * self.scale.exp() - self.scale).sum(), losses

    def gradients(self) -> list[Tensor]:
        learnt = (self.weight, self.bias) if self.weighted else (self.weight, self.bias, self.scale)
        return [one.grad for one in learnt if one.grad is not None]


def assert_equal_steps(
    plain: Head, fused: Head, compiled: Callable[..., Any], eager: Callable[..., Any], batches: list[Any]
) -> None:
    """Batches of several sizes, gradients added up over two of them; the map's state bit for bit."""
    for number, (inputs, targets, ids) in enumerate(batches):
        ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        expected, got = eager(theirs, targets, ids), compiled(ours, targets, ids)
        torch.testing.assert_close(got, expected)
        assert not got[1].requires_grad or not fused.weighted
        expected[0].backward()
        got[0].backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fused.gradients(), plain.gradients(), rtol=1e-5, atol=1e-6)
        assert len(fused.gradients()) == len(plain.gradients()) >= 2
        if number % 2:
            for head in (plain, fused):
                head.weight.grad = head.bias.grad = head.scale.grad = None
    for ours, theirs in zip(fused.map.state, plain.map.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [False, True])
def test_step_with_map(engine: str, weighted: bool, backend: str, generator: torch.Generator) -> None:
    plain = Head(generator, weighted=weighted, backend=backend)
    fused = plain.copy()
    batches = [batch(rows, generator) for rows in (7, 12, 33, 7)]
    compiled = torch.compile(fused.__call__, fullgraph=True, backend=engine)
    assert_equal_steps(plain, fused, compiled, plain, batches)
    assert int(fused.map.count[:, 0].sum()) == 7 + 12 + 33 + 7
    with torch.no_grad():
        torch.testing.assert_close(compiled(*batches[0]), plain(*batches[0]))
    assert int(fused.map.count[:, 0].sum()) == 59 + 7


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_step_with_amp(engine: str, weighted: bool, missing: bool, generator: torch.Generator) -> None:
    """Autocast inside the compiled step, as it is around a network's layers; labels missing; a row refused."""
    plain = Head(generator, weighted=weighted, missing=missing)
    plain.amp = True
    fused = plain.copy()
    batches = [batch(rows, generator, missing=missing) for rows in (7, 12)]
    assert_equal_steps(plain, fused, torch.compile(fused.__call__, fullgraph=True, backend=engine), plain, batches)
    with torch.no_grad():
        plain.weight[0, 0] = fused.weight[0, 0] = torch.inf
        batches[0][0][3, 0] = 0  # times infinity no number: of this row's losses only the first, in a chunk of its own
        batches[0][1][3, 0] = 1
        compiled = torch.compile(fused.__call__, fullgraph=True, backend=engine)
        plain(*batches[0]), compiled(*batches[0])
    assert fused.map.num_rejected == plain.map.num_rejected > 0
    for ours, theirs in zip(fused.map.state, plain.map.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpointed_inside(engine: str, generator: torch.Generator) -> None:
    """A segment that is computed again in the backward pass is recorded once."""
    plain = Head(generator, weighted=False)
    fused = plain.copy()

    def checkpointed(*arguments: Tensor) -> Any:
        return checkpoint(fused.__call__, *arguments, use_reentrant=False)

    compiled = torch.compile(checkpointed, fullgraph=True, backend=engine)
    assert_equal_steps(plain, fused, compiled, plain, [batch(rows, generator) for rows in (7, 12)])
    assert int(fused.map.count[:, 0].sum()) == 7 + 12


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoint_around_it(engine: str, generator: torch.Generator) -> None:
    plain = Head(generator, weighted=True)
    fused = plain.copy()
    compiled = torch.compile(fused.__call__, fullgraph=True, backend=engine)
    assert_equal_steps(
        plain,
        fused,
        lambda *arguments: checkpoint(compiled, *arguments, use_reentrant=False),
        plain,
        [batch(rows, generator) for rows in (7, 12)],
    )
    assert int(fused.map.count[:, 0].sum()) == 7 + 12


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_and_what_is_frozen(
    weighted: bool, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    """No bias, no gradient of the weight; max_columns as it comes."""
    inputs, targets, _ = batch(9, generator)
    weight = torch.randn(6, 5, generator=generator).to(dtype)

    def objective(x: Tensor, columns: int) -> Tensor:
        options: dict[str, Any] = {"max_columns": columns, "backend": backend}
        if weighted:
            return weighted_linear_multitask_cross_entropy(x, weight, None, targets, LAYOUT, **options)[0]
        return linear_multitask_cross_entropy(x, weight, None, targets, LAYOUT, **options).square().sum()

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    for columns in (1, 4, 6):
        results = []
        for function in (objective, compiled):
            x = inputs.to(dtype).requires_grad_()
            total = function(x, columns)
            results.append((total.detach(), *torch.autograd.grad(total, x)))
        torch.testing.assert_close(*results)


def test_layouts_that_come_and_go(backend: str, generator: torch.Generator) -> None:
    """A compiled call keeps what it was compiled for, and sees that another layout is another."""

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    def losses_of(x: Tensor, weight: Tensor, targets: Tensor, layout: TaskLayout) -> Tensor:
        return linear_multitask_cross_entropy(x, weight, None, targets, layout, max_columns=3, backend=backend)

    inputs, targets, _ = batch(4, generator)
    for positive in (1.0, 2.0, 3.0, 2.0):
        weight = torch.randn(6, 5, generator=generator).requires_grad_()
        layout = TaskLayout(["a", "b", "c"], [1, 3, 2], [positive, None, None])
        expected = linear_multitask_cross_entropy(inputs, weight, None, targets, layout, backend=backend)
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), weight)
        got, expected = losses_of(inputs, weight, targets, layout), expected.detach()  # which keeps no layout
        del layout
        gc.collect()
        (gradient,) = torch.autograd.grad(got.square().sum(), weight)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_values(engine: str, backend: str, generator: torch.Generator) -> None:
    """Raised by the compiled step too, the map unchanged; and the next step goes on."""
    head = Head(generator, weighted=False, backend=backend)
    compiled = torch.compile(head.__call__, fullgraph=True, backend=engine)
    compiled(*batch(6, generator))
    before = [tensor.clone() for tensor in head.map.state]
    for error, message in (
        (InvalidArgumentError, "holds 9"),
        (MissingLabelError, "targets miss the label of task 'c' in row 4"),
        (SampleIdError, "row 5 holds 10"),
    ):
        inputs, targets, ids = batch(6, generator)
        if error is SampleIdError:
            ids[5] = 10
        else:
            targets[4, 2] = 9 if error is InvalidArgumentError else -100
        with pytest.raises(error, match=message):
            compiled(inputs, targets, ids)
        for now, then in zip(head.map.state, before, strict=True):
            assert torch.equal(now, then)
    compiled(*batch(6, generator))
    assert int(head.map.count[:, 0].sum()) == 12


def test_shapes_on_the_meta_device() -> None:
    weight, targets = torch.zeros(6, 5, device="meta", requires_grad=True), torch.zeros(4, 3, device="meta").long()

    def total(x: Tensor) -> Tensor:
        return weighted_linear_multitask_cross_entropy(x, weight, None, targets, LAYOUT)[0]

    result = torch.compile(total, fullgraph=True, backend="aot_eager")(torch.zeros(4, 5, device="meta"))
    result.backward()
    assert result.shape == ()
    assert weight.grad.shape == (6, 5)


@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_read_of_a_device(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that defers, on tensors without values: what reads one, or has a size that depends on one, raises.

    So it would wait for a GPU, and could not be captured in a CUDA graph.
    """

    def cross_entropy(logits: Tensor, targets: Tensor, layout: TaskLayout, **_: Any) -> tuple[Tensor, Tensor]:
        return logits.new_empty(layout.num_tasks), logits.new_empty(layout.num_tasks)

    def gradient(left: Tensor, logits: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty_like(logits)

    recorded: list[Any] = []
    silent = dataclasses.replace(
        backend_named("cpp"),
        cross_entropy=cross_entropy,
        gradient=gradient,
        record=lambda *given: recorded.append(given),
        defers=True,
    )
    monkeypatch.setattr(_linear_chunks, "backend_at_work", lambda name, device: silent)
    monkeypatch.setattr(_faults, "_buffers", {})
    _faults.fault_buffer(torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = torch.empty(7, 5), torch.empty(6, 5), torch.empty(6), torch.empty(7, 3, dtype=torch.long)
        state = (torch.empty(7, dtype=torch.long), *DataMap(10, LAYOUT, missing=missing).state)
        rest, needed = (LAYOUT.handle, -100, 3, "cpp"), (True, True, True)
        losses, _ = _linear_ops._linear_cross_entropy(*head, *state, *rest, True)
        of = _linear_ops._linear_cross_entropy_gradient(losses, *head, losses, *rest, *needed)
        total = _linear_ops._linear_cross_entropy_total(*head, None, *state, *rest, *needed)
        with pytest.raises(DataDependentOutputException):
            bool(losses.sum())
    assert [tuple(one.shape) for one in of] == [tuple(one.shape) for one in total[2:]] == [(7, 5), (6, 5), (6,)]
    assert len(recorded) == 2
