"""The fused linear head: losses, gradients and maps of the logits materialised, without their memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _cases import random_case, random_layout
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pymtg import DataMap, TaskLayout
from pymtg import _linear_ops as ops
from pymtg.errors import BackendError, InvalidArgumentError, InvalidTypeError, MissingLabelError, SampleIdError
from pymtg.functional import (
    linear_multitask_cross_entropy,
    multitask_cross_entropy,
    weighted_linear_multitask_cross_entropy,
)

FUNCTIONS = [linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy]
CLASSES = [1, 4, 2, 1, 1, 7, 3]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def head(
    layout: TaskLayout, rows: int, dtype: torch.dtype, generator: torch.Generator, *, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    made = [torch.randn(rows, 6, generator=generator), torch.randn(layout.num_logits, 6, generator=generator)]
    made += [torch.randn(layout.num_logits, generator=generator)] if bias else []
    made = [one.to(dtype).requires_grad_() for one in made]
    return made[0], made[1], made[2] if bias else None


def gradients(total: Tensor, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, [tensor for tensor in tensors if tensor is not None])


def assert_same_map(got: DataMap, expected: DataMap) -> None:
    assert torch.equal(got.count, expected.count)
    assert torch.equal(got.correctness, expected.correctness)
    assert got.num_rejected == expected.num_rejected
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(got.std, expected.std, rtol=1e-5, atol=5e-7)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("max_columns", [None, 1, 6])
def test_as_materialised(
    dtype: torch.dtype, bias: bool, max_columns: int | None, backend: str, generator: torch.Generator
) -> None:
    layout = random_layout(CLASSES, generator, weighted=True)
    case = random_case(layout, 11, generator, dtype=dtype, missing="some")
    tensors = head(layout, 11, dtype, generator, bias=bias)
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "backend": backend}
    expected = multitask_cross_entropy(F.linear(*tensors), case.targets, layout, **options)
    got = linear_multitask_cross_entropy(*tensors, case.targets, layout, max_columns=max_columns, **options)
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    wanted = gradients((expected * case.upstream).sum(), tensors)
    torch.testing.assert_close(gradients((got * case.upstream).sum(), tensors), wanted, **close)
    total, losses = weighted_linear_multitask_cross_entropy(
        *tensors, case.targets, layout, case.upstream.abs(), max_columns=max_columns, **options
    )
    torch.testing.assert_close(losses, got.detach(), rtol=1e-5, atol=1e-5)
    assert not losses.requires_grad
    expected = multitask_cross_entropy(F.linear(*tensors), case.targets, layout, **options)
    wanted = gradients(2 * (expected * case.upstream.abs()).sum(), tensors)
    torch.testing.assert_close(gradients(2 * total, tensors), wanted, **close)


def test_gradcheck(backend: str, generator: torch.Generator) -> None:
    layout = random_layout([1, 3, 2], generator, weighted=True)
    targets = random_case(layout, 4, generator, missing="some").targets
    tensors = head(layout, 4, torch.float64, generator)
    weights = torch.rand(3, generator=generator)
    assert torch.autograd.gradcheck(
        lambda *x: linear_multitask_cross_entropy(*x, targets, layout, max_columns=3, backend=backend), tensors
    )
    assert torch.autograd.gradcheck(
        lambda *x: weighted_linear_multitask_cross_entropy(
            *x, targets, layout, weights, max_columns=3, backend=backend
        )[0],
        tensors,
    )


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_map(missing: bool, weighted: bool, backend: str, generator: torch.Generator) -> None:
    """Duplicates, missing labels, a row with a loss that is not finite in one chunk only; several batches."""
    layout = random_layout(CLASSES, generator, weighted=True)
    maps = [DataMap(8, layout, missing=missing) for _ in range(2)]
    for _ in range(4):
        case = random_case(layout, 12, generator, missing="some" if missing else "none")
        features, weight, bias = (one.detach() for one in head(layout, 12, torch.float32, generator))
        features[3, 0] = torch.nan
        ids = torch.randint(8, (12,), generator=generator)
        arguments = {"sample_ids": ids, "backend": backend, "ignore_index": case.ignore_index}
        function = weighted_linear_multitask_cross_entropy if weighted else linear_multitask_cross_entropy
        function(features, weight, bias, case.targets, layout, data_map=maps[0], max_columns=5, **arguments)
        multitask_cross_entropy(F.linear(features, weight, bias), case.targets, layout, data_map=maps[1], **arguments)
    assert_same_map(*maps)
    assert maps[0].num_rejected > 0


@pytest.mark.parametrize("storage", [None, "cpu"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_refused_by_one_chunk(storage: str | None, function: Any, backend: str) -> None:
    """A row with one loss that is not finite is left out of the map for every task, whichever chunk that is in."""
    layout = TaskLayout(["a", "b", "c"], [2, 1, 3])
    features, targets, ids = 10 * torch.eye(4), torch.zeros(4, 3, dtype=torch.long), torch.tensor([3, 1, 3, 5])
    for column in (0, 2, 5):
        data_map, weight = DataMap(6, layout, storage=storage), torch.zeros(6, 4)
        weight[column, 1] = 3e38
        for _ in range(2):
            function(
                features, weight, None, targets, layout,
                max_columns=1, data_map=data_map, sample_ids=ids, backend=backend,
            )  # fmt: skip
        assert data_map.count[:, 0].tolist() == [0, 0, 0, 4, 0, 2]
        assert bool((data_map.count == data_map.count[:, :1]).all())
        assert data_map.num_rejected == 2


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_map_in_host_memory(missing: bool, function: Any, backend: str, generator: torch.Generator) -> None:
    """As on the device, to rounding: in host memory the C++ backend records."""
    layout = random_layout(CLASSES, generator, weighted=True)
    maps = [DataMap(8, layout, missing=missing, storage=storage) for storage in ("cpu", None)]
    for _ in range(3):
        case = random_case(layout, 12, generator, missing="some" if missing else "none")
        tensors = head(layout, 12, torch.float32, generator)
        tensors[0].data[3, 0] = torch.nan
        ids = torch.randint(8, (12,), generator=generator)
        options = {"backend": backend, "ignore_index": case.ignore_index, "max_columns": 5}
        for data_map in maps:
            function(*tensors, case.targets, layout, data_map=data_map, sample_ids=ids, **options)
    assert_same_map(*maps)
    assert maps[0].num_rejected > 0


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_labels_that_look_like_a_missing_one(missing: bool, function: Any, backend: str) -> None:
    """-100 in 8 bits is 156: in uint8 a label as any other."""
    layout = TaskLayout(["a", "b"], [200, 2])
    data_map = DataMap(1, layout, missing=missing)
    targets = torch.tensor([[156, 1]], dtype=torch.uint8)
    function(
        torch.ones(1, 3), torch.zeros(202, 3), None, targets, layout,
        data_map=data_map, sample_ids=torch.tensor([0]), backend=backend,
    )  # fmt: skip
    assert data_map.count.tolist() == [[1, 1]]
    torch.testing.assert_close(data_map.mean, torch.tensor([[1 / 200, 1 / 2]]))


@pytest.mark.parametrize("storage", [None, "cpu"])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_checkpointing_counts_once(
    storage: str | None, use_reentrant: bool, function: Any, backend: str, generator: torch.Generator
) -> None:
    layout = random_layout(CLASSES, generator, weighted=True)
    case = random_case(layout, 12, generator)
    features, weight, bias = head(layout, 12, torch.float32, generator)
    plain, checkpointed = (DataMap(8, layout, storage=storage) for _ in range(2))
    ids = torch.randint(8, (12,), generator=generator)

    def step(x: Tensor, data_map: DataMap) -> Tensor:
        result = function(
            x.tanh(), weight, bias, case.targets, layout,
            data_map=data_map, sample_ids=ids, max_columns=5, backend=backend,
        )  # fmt: skip
        return result.square().sum() if isinstance(result, Tensor) else 2 * result[0]

    expected = gradients(step(features, plain), (features, weight, bias))
    checkpoint(step, features, checkpointed, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close((features.grad, weight.grad, bias.grad), expected)
    for ours, theirs in zip(checkpointed.state, plain.state, strict=True):
        assert torch.equal(ours, theirs)
    assert int(plain.count[:, 0].sum()) == 12


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_accumulate(function: Any, backend: str, generator: torch.Generator) -> None:
    layout = random_layout(CLASSES, generator, weighted=True)
    tensors, expected = head(layout, 12, torch.float64, generator), []
    for _ in range(3):
        case = random_case(layout, 12, generator, missing="some")
        result = function(*tensors, case.targets, layout, max_columns=5, backend=backend)
        total = (result * case.upstream).sum() if isinstance(result, Tensor) else result[0]
        total.backward(retain_graph=True)
        expected.append(gradients(total, tensors))
    for one, parts in zip(tensors, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one.grad, sum(parts))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_frozen(frozen: tuple[int, ...], function: Any, backend: str, generator: torch.Generator) -> None:
    """What needs no gradient has none, and none is computed: the operators return nothing in its place."""
    layout = random_layout(CLASSES, generator, weighted=True)
    case = random_case(layout, 12, generator, missing="some")
    made = head(layout, 12, torch.float32, generator)
    wanted = function(*made, case.targets, layout, max_columns=5, backend=backend)
    wanted = wanted.sum() if isinstance(wanted, Tensor) else wanted[0]
    expected = gradients(wanted, made)
    tensors = [one.detach().requires_grad_(place not in frozen) for place, one in enumerate(made)]
    result = function(*tensors, case.targets, layout, max_columns=5, backend=backend)
    (result.sum() if isinstance(result, Tensor) else result[0]).backward()
    for place, (one, full) in enumerate(zip(tensors, expected, strict=True)):
        if place in frozen:
            assert one.grad is None
        else:
            assert torch.equal(one.grad, full)
    detached, needed = [one.detach() for one in tensors], [place not in frozen for place in range(3)]
    rest = (layout.handle, case.ignore_index, 5, backend, *needed)
    _, left = ops.linear_cross_entropy(*detached, case.targets, None, None, None, None, *rest[:4], True)
    of = ops.linear_cross_entropy_gradient(left, *detached, case.targets, torch.ones(7), *rest)
    assert [bool(one.numel()) for one in of] == needed
    of = ops.linear_cross_entropy_total(*detached, case.targets, None, None, None, None, None, *rest)[2:]
    assert [bool(one.numel()) for one in of] == needed


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(recording: bool, bias: bool, dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    layout = random_layout([1, 4, 2], generator, weighted=True)
    case = random_case(layout, 5, generator)
    features, weight, offset = (
        None if one is None else one.detach() for one in head(layout, 5, dtype, generator, bias=bias)
    )
    features = features.T.contiguous().T
    state = (torch.tensor([1, 0, 1, 3, 8]), *DataMap(9, layout).state) if recording else (None,) * 4
    inputs, rest = (features, weight, offset, case.targets), (layout.handle, -100, 4, backend)
    for need in (False, True):
        torch.library.opcheck(ops.linear_cross_entropy, (*inputs, *state, *rest, need))
        needed = (need, True, need)
        for weights in (None, case.upstream.abs()):
            torch.library.opcheck(ops.linear_cross_entropy_total, (*inputs, weights, *state, *rest, *needed))
        _, left = ops.linear_cross_entropy(*inputs, None, None, None, None, *rest, True)
        upstream = case.upstream.to(left.dtype)
        torch.library.opcheck(ops.linear_cross_entropy_gradient, (left, *inputs, upstream, *rest, *needed))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_layout_may_go_before_the_backward_pass(function: Any, backend: str, generator: torch.Generator) -> None:
    """And is not kept after it."""
    tensors = head(TaskLayout(["a", "b"], [2, 3]), 5, torch.float32, generator)
    targets, handles = torch.zeros(5, 2, dtype=torch.long), []

    def total() -> Tensor:
        layout = TaskLayout(["a", "b"], [2, 3], class_weights=[[1.0, 2.0], None])
        handles.append(layout.handle)
        result = function(*tensors, targets, layout, max_columns=3, backend=backend)
        return result.sum() if isinstance(result, Tensor) else result[0]

    result = total()
    gc.collect()
    assert gradients(2 * result, tensors)[0].any()
    del result
    gc.collect()
    with pytest.raises(KeyError):
        TaskLayout.with_handle(handles[0])


def test_targets_between_forward_and_backward(backend: str, generator: torch.Generator) -> None:
    """The backward pass reads them: changed ones are an error. Those made in inference mode are taken as they are."""
    layout = TaskLayout(["a", "b"], [2, 3])
    tensors = head(layout, 5, torch.float32, generator)
    targets = torch.zeros(5, 2, dtype=torch.long)
    losses = linear_multitask_cross_entropy(*tensors, targets, layout, backend=backend)
    expected = gradients(losses.sum(), tensors)
    losses = linear_multitask_cross_entropy(*tensors, targets, layout, backend=backend)
    targets.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
    with torch.inference_mode():
        targets = torch.zeros(5, 2, dtype=torch.long)
    losses = linear_multitask_cross_entropy(*tensors, targets, layout, backend=backend)
    torch.testing.assert_close(gradients(losses.sum(), tensors), expected)


def test_without_gradients_and_with_some(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    features, weight, bias = head(layout, 5, torch.float32, generator)
    targets = torch.zeros(5, 2, dtype=torch.long)
    for function in (linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy):
        with torch.no_grad():
            result = function(features, weight, bias, targets, layout, backend=backend)
        assert not (result if isinstance(result, Tensor) else result[0]).requires_grad
        result = function(features, weight.detach(), bias.detach(), targets, layout, backend=backend)
        total = result.sum() if isinstance(result, Tensor) else result[0]
        (only,) = torch.autograd.grad(total, features, create_graph=True)
        expected = multitask_cross_entropy(F.linear(features, weight, bias), targets, layout).sum()
        torch.testing.assert_close(only, torch.autograd.grad(expected, features)[0])
        with pytest.raises(BackendError, match="linear_multitask_cross_entropy is differentiable once"):
            only.square().sum().backward()
        with pytest.raises(BackendError, match="linear_multitask_cross_entropy is differentiable once"):
            torch.autograd.grad(only.square().sum() + features.square().sum(), features)


def test_many_backward_passes_as_one(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    features, weight, bias = head(layout, 5, torch.float32, generator)
    targets = torch.zeros(5, 2, dtype=torch.long)
    for function in (linear_multitask_cross_entropy, weighted_linear_multitask_cross_entropy):
        result = function(features, weight, bias, targets, layout, backend=backend)
        losses = result if isinstance(result, Tensor) else result[0]
        many = torch.randn(3, *losses.shape)
        each = [torch.autograd.grad(losses, weight, one, retain_graph=True)[0] for one in many]
        got = torch.autograd.grad(losses, weight, many, is_grads_batched=True)[0]
        torch.testing.assert_close(got, torch.stack(each))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, as it makes duals
@pytest.mark.parametrize("at", [0, 1, 2])
def test_forward_mode_is_refused(at: int, backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    given = [tensor.detach() for tensor in head(layout, 5, torch.float32, generator)]

    def losses(values: Tensor) -> Tensor:
        own = [values if i == at else tensor for i, tensor in enumerate(given)]
        return linear_multitask_cross_entropy(*own, torch.zeros(5, 2, dtype=torch.long), layout, backend=backend)

    with pytest.raises(BackendError, match=f"{('features', 'weight', 'bias')[at]} must not carry a tangent"):
        torch.func.jvp(losses, (given[at],), (torch.ones_like(given[at]),))


def test_second_backward(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    tensors = head(layout, 5, torch.float32, generator)
    targets = torch.zeros(5, 2, dtype=torch.long)
    total, _ = weighted_linear_multitask_cross_entropy(*tensors, targets, layout, backend=backend)
    total.backward(retain_graph=True)
    first = tensors[1].grad.clone()
    tensors[1].grad.zero_()
    total.backward()
    assert torch.equal(tensors[1].grad, first)


def test_autocast(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    features, weight, bias = head(layout, 5, torch.float32, generator)
    targets = torch.ones(5, 2, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_multitask_cross_entropy(features, weight, bias, targets, layout, backend=backend)
        expected = multitask_cross_entropy(F.linear(features, weight, bias), targets, layout, backend=backend)
    assert torch.equal(got, expected)
    got.sum().backward()
    assert weight.grad.dtype == features.grad.dtype == torch.float32


def test_empty_batch(backend: str, generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    features, weight, bias = head(layout, 0, torch.float32, generator)
    losses = linear_multitask_cross_entropy(
        features, weight, bias, torch.zeros(0, 2, dtype=torch.long), layout, backend=backend
    )
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, InvalidArgumentError, r"features must be \[B, D\]; got \[2, 3, 4\]"),
        ({"features": [1.0]}, InvalidTypeError, "features must be a tensor; got list"),
        ({"weight": torch.zeros(5, 4)}, InvalidArgumentError, r"weight must be \[5, 3\] for this layout; got \[5, 4\]"),
        ({"weight": torch.zeros(5, 3).double()}, InvalidArgumentError, "weight must be torch.float32 on cpu, as feat"),
        ({"bias": torch.zeros(4)}, InvalidArgumentError, r"bias must be \[5\]; got \[4\]"),
        ({"features": torch.zeros(2, 3).to_sparse()}, InvalidTypeError, "features must be a dense .* torch.sparse_coo"),
        ({"weight": torch.zeros(5, 3).to_sparse()}, InvalidTypeError, "weight must be a dense .* got torch.sparse_coo"),
        ({"bias": torch.zeros(5).to_sparse()}, InvalidTypeError, "bias must be a dense .* got torch.sparse_coo"),
        ({"targets": torch.zeros(2, 2).long().to_sparse()}, InvalidTypeError, "targets must be a dense"),
        ({"weight": torch.zeros(5, 3, device="meta")}, InvalidArgumentError, "weight must be .* got .* on meta"),
        ({"targets": torch.zeros(3, 2).long()}, InvalidArgumentError, r"targets must be \[2, 2\]"),
        ({"targets": torch.full((2, 2), 9)}, InvalidArgumentError, "row 0, column 0 holds 9"),
        ({"targets": torch.tensor([[0, 1], [1, 7]])}, InvalidArgumentError, "task 'b'; row 1, column 1 holds 7"),
        ({"targets": torch.full((2, 2), -100)}, MissingLabelError, "targets miss the label of task 'a' in row 0"),
        ({"sample_ids": torch.tensor([0, 7])}, SampleIdError, "row 1 holds 7"),
        ({"sample_ids": None}, InvalidArgumentError, "sample_ids must be given with a data map"),
        ({"max_columns": 0}, InvalidArgumentError, "max_columns must be at least 1; got 0"),
        ({"max_columns": 2.0}, InvalidTypeError, "max_columns must be an integer; got 2.0"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    data_map = DataMap(4, layout)
    arguments: dict[str, Any] = {
        "features": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "bias": torch.zeros(5),
        "targets": torch.zeros(2, 2, dtype=torch.long),
        "layout": layout,
        "data_map": data_map,
        "sample_ids": torch.tensor([0, 1]),
        "max_columns": 2,
    } | change
    with pytest.raises(error, match=message):
        linear_multitask_cross_entropy(**arguments, backend=backend)
    assert not data_map.state.words.any()
    assert not data_map.count.any()


def test_shapes_on_the_meta_device() -> None:
    layout = TaskLayout(["a", "b"], [2, 3])
    with torch.device("meta"):
        features, weight, bias = (torch.zeros(shape).requires_grad_() for shape in ([2, 4], [5, 4], [5]))
        targets, ids = torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    losses = linear_multitask_cross_entropy(features, weight, bias, targets, layout, max_columns=2)
    total, _ = weighted_linear_multitask_cross_entropy(features, weight, bias, targets, layout)
    (losses.sum() + total).backward()
    assert losses.is_meta
    assert losses.shape == (2,)
    assert [one.grad.shape for one in (features, weight, bias)] == [(2, 4), (5, 4), (5,)]  # type: ignore[union-attr]
    with pytest.raises(InvalidArgumentError, match="data_map must be None for features on the meta device"):
        linear_multitask_cross_entropy(
            features, weight, bias, targets, layout, data_map=DataMap(3, layout, device="meta"), sample_ids=ids
        )


PEAKS = """
import torch
import torch.nn.functional as F
from pymtg import TaskLayout
from pymtg.functional import linear_multitask_cross_entropy, multitask_cross_entropy

torch.set_num_threads(1)
layout = TaskLayout([f"task{t}" for t in range(1500)], [10] * 1500)
features, weight = torch.randn(1000, 8, requires_grad=True), torch.randn(15000, 8, requires_grad=True)
targets = torch.zeros(1000, 1500, dtype=torch.uint8)

def peak():  # of this program alone: getrusage goes on from the peak of the process that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

linear_multitask_cross_entropy(features[:2], weight, None, targets[:2], layout).sum().backward()
start = peak()
(2 * linear_multitask_cross_entropy(features, weight, None, targets, layout)).sum().backward()
fused = peak() - start
(2 * multitask_cross_entropy(F.linear(features, weight), targets, layout)).sum().backward()
print(fused * 1024, (peak() - start) * 1024, 1000 * 15000 * 4)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory() -> None:
    """A process of its own: its peak grows by a fraction of what it grows by where the logits are materialised."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    fused, materialised, logits = map(int, done.stdout.split())
    assert materialised > logits
    assert fused < materialised / 5
