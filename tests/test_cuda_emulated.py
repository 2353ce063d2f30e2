"""The CUDA kernels' own code, run thread by thread on the CPU, against one task at a time and against the oracle."""

from __future__ import annotations

import itertools

import pytest
import test_assigned_cross_entropy
import test_extreme_logits
import torch
from _cases import CLASSES, MISSING, STRIDES, random_case, random_layout, task_by_task
from _emulated import compiler, emulated_kernels
from _heads import STACKS, random_heads
from _loss_checks import check, run
from _settings import TARGET_DTYPES
from torch import Tensor

from pymtg import DataMap, TaskLayout, _backend, _faults
from pymtg._cuda_backend import CudaBackend
from pymtg.errors import InvalidArgumentError, MissingLabelError, SampleIdError
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
NAME = "cuda-emulated"
NARROW = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ["ones-1", "ones-25", "ones-100", "twos-1", "twos-37", "primes", "ragged", "wide", "widest", "wide-between"]
LAYOUTS += ["ones-among", "ones-twos-mixed", "mixed-twos-ones"]


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> CudaBackend:
    assert pytestconfig.cache is not None
    return CudaBackend(emulated_kernels(pytestconfig.cache.mkdir("emulated")))


@pytest.fixture(autouse=True)
def _registered(emulated: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _backend._BACKENDS["cuda"]
    backend = _backend.Backend(
        emulated.cross_entropy,
        emulated.assigned_cross_entropy,
        emulated.record,
        emulated.scale_gradient,
        lambda device: device.type == "cpu",
        scale_gradient_=emulated.scale_gradient_,
        defers=real.defers,
    )
    monkeypatch.setitem(_backend._BACKENDS, NAME, backend)
    monkeypatch.setattr(_backend, "_AVAILABLE", (*_backend._AVAILABLE, NAME))
    _faults.fault_buffer(torch.device("cpu")).zero_()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate((0, 1, 5, 33, 252)):
        drawn = [int(n) for n in torch.randint(2**20, (5,), generator=generator)]
        case = random_case(
            random_layout(CLASSES[name], generator, weighted=number % 2 == 1),
            rows,
            generator,
            dtype=NARROW[drawn[0] % len(NARROW)],
            target_dtype=TARGET_DTYPES[drawn[1] % len(TARGET_DTYPES)],
            missing=MISSING[drawn[2] % len(MISSING)],
            logit_strides=STRIDES[drawn[3] % len(STRIDES)],
            target_strides=STRIDES[drawn[4] % len(STRIDES)],
        )
        check(case, NAME)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_dtypes_and_strides(dtype: torch.dtype, generator: torch.Generator, poisoned: None) -> None:
    layout = random_layout([*[1] * 9, 3, 5, 2, 300, 40], generator, weighted=True)
    for target_dtype, strides in itertools.product(TARGET_DTYPES, STRIDES):
        case = random_case(
            layout,
            9,
            generator,
            dtype=dtype,
            target_dtype=target_dtype,
            missing="some",
            logit_strides=strides,
            target_strides=strides,
        )
        check(case, NAME)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("strides", STACKS)
def test_heads_under_an_assignment(strides: str, per_row: bool, generator: torch.Generator, poisoned: None) -> None:
    layout = random_layout([1, 1, 5, 2, 300, 3], generator, weighted=True)
    for number, dtype in enumerate((*NARROW, torch.float64)):
        options = {"dtype": dtype, "strides": strides, "missing": "some", "per_row": per_row}
        heads = random_heads(layout, 1 + number, 9 * number, generator, **options)
        test_assigned_cross_entropy.check(heads, NAME)


def test_weighted_total(generator: torch.Generator, poisoned: None) -> None:
    case = random_case(random_layout(CLASSES["primes"], generator, weighted=True), 33, generator)
    weights = torch.rand(case.layout.num_tasks, generator=generator)
    total, losses = weighted_multitask_cross_entropy(case.logits, case.targets, case.layout, weights, backend=NAME)
    (gradient,) = torch.autograd.grad(total, case.logits)
    case.upstream = weights
    expected, expected_gradient = run(case, "reference")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "classes", [[1] * 20, [2] * 30, [3, 1, 40, 2], [300, 2, 1], [3] * 300], ids=lambda c: str(c[:4])
)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("most_hashed", [1 << 17, 0], ids=["hashed", "sorted"])
def test_map_against_the_oracle(
    classes: list[int],
    missing: bool,
    most_hashed: int,
    emulated: CudaBackend,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    poisoned: None,
) -> None:
    """Duplicate ids, in both widths, some of whose rows are refused; several steps, so that old words are read."""
    monkeypatch.setattr(emulated.kernels, "most_hashed", most_hashed)
    layout = random_layout(classes, generator, weighted=False)
    ours, theirs = DataMap(30, layout, missing=missing), DataMap(30, layout, missing=missing)
    for rows, samples in ((40, 7), (40, 30), (1, 30), (70, 1), (300, 30)):
        case = random_case(layout, rows, generator, missing="some" if missing else "none")
        if rows > 1:
            case.logits.data[torch.randint(rows, (3,), generator=generator), layout.num_logits // 2] = torch.inf
        ids = torch.randint(samples, (rows,), generator=generator)
        ids = ids.int() if rows == 1 else ids
        for data_map, backend in ((ours, NAME), (theirs, "reference")):
            multitask_cross_entropy(
                case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=backend
            )
    assert_equal_maps(ours, theirs)
    assert ours.count.sum() > 0
    assert ours.num_rejected > 0


def assert_equal_maps(ours: DataMap, theirs: DataMap) -> None:
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=5e-6, atol=1e-7)
    torch.testing.assert_close(ours.std, theirs.std, rtol=1e-4, atol=2e-6)
    assert torch.equal(ours.correctness, theirs.correctness)
    assert torch.equal(ours.count, theirs.count)
    assert ours.num_rejected == theirs.num_rejected


@pytest.mark.parametrize("tasks", [20, 500], ids=["whole rows", "tiles"])
def test_order_of_the_batch(tasks: int, generator: torch.Generator) -> None:
    """Rows of one id give the words of rows that come one after the other, bit for bit."""
    layout = TaskLayout.binary([f"task{t}" for t in range(tasks)])
    logits, targets = torch.randn(37, tasks, generator=generator), torch.randint(2, (37, tasks), generator=generator)
    ids = torch.randint(4, (37,), generator=generator)
    at_once, in_turn = DataMap(4, layout), DataMap(4, layout)
    multitask_cross_entropy(logits, targets, layout, data_map=at_once, sample_ids=ids, backend=NAME)
    for row in range(37):
        one = slice(row, row + 1)
        multitask_cross_entropy(logits[one], targets[one], layout, data_map=in_turn, sample_ids=ids[one], backend=NAME)
    assert torch.equal(at_once.state.words, in_turn.state.words)
    assert torch.equal(at_once.state.counts, in_turn.state.counts)


def test_many_rows(generator: torch.Generator) -> None:
    check_rows(torch.randint(7_000, (9_000,), generator=generator), 7_000, generator)


def test_more_ids_than_a_table_has_slots(generator: torch.Generator) -> None:
    """Ids chosen so that one of six tables gets all of them: what does not fit is found by looking at every row."""
    ids = [i for i in range(17_000) if (i * 0x9E3779B97F4A7C15 % 2**64 >> 48) * 6 >> 16 == 0]
    assert len(ids) > 2_048 + 500
    chosen = torch.tensor(ids)[torch.randperm(len(ids), generator=generator)][:2_500]
    twice = chosen[torch.randint(2_500, (500,), generator=generator)]
    ids_of_rows = torch.cat([chosen, twice])[torch.randperm(3_000, generator=generator)]
    check_rows(ids_of_rows, 17_000, generator)


def test_few_ids_unevenly_spread(generator: torch.Generator) -> None:
    """Many rows of an id: the next one is looked for in the batch, not in the list."""
    ids = torch.cat([torch.zeros(300, dtype=torch.long), torch.randint(1, 900, (1_500,), generator=generator)])
    ids = torch.cat([ids, torch.zeros(200, dtype=torch.long), ids[:1]])
    check_rows(ids, 900, generator)


@pytest.mark.parametrize(("tasks", "classes"), [(1, 1), (15, 1), (100, 1), (100, 10), (60, 20)])
def test_three_launches(tasks: int, classes: int, emulated: CudaBackend, generator: torch.Generator) -> None:
    """For losses, gradient and map of a small batch; one more where a tile has no room for all tasks."""
    layout = TaskLayout([f"task{t}" for t in range(tasks)], [classes] * tasks)
    case = random_case(layout, 256, generator, missing="none")
    data_map, ids = DataMap(300, layout), torch.randperm(256, generator=generator)
    before = emulated.kernels.launches()
    losses = multitask_cross_entropy(case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=NAME)
    torch.autograd.grad(losses, case.logits, case.upstream)
    assert emulated.kernels.launches() - before == 3


def check_rows(ids: Tensor, samples: int, generator: torch.Generator) -> None:
    layout, rows = TaskLayout.binary(["a"]), len(ids)
    logits, targets = torch.randn(rows, 1, generator=generator), torch.randint(2, (rows, 1), generator=generator)
    ours, theirs = DataMap(samples, layout), DataMap(samples, layout)
    for data_map, backend in ((ours, NAME), (theirs, "reference")):
        multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, backend=backend)
    assert_equal_maps(ours, theirs)


def test_record(generator: torch.Generator) -> None:
    layout = TaskLayout.binary([f"task{t}" for t in range(150)])
    for missing in (False, True):
        ours, theirs = DataMap(9, layout, missing=missing), DataMap(9, layout, missing=missing)
        for _ in range(3):
            p = torch.rand(31, 150, generator=generator)
            p[3, 5] = torch.nan
            ids = torch.randint(9, (31,), generator=generator)
            valid = torch.rand(31, 150, generator=generator) < 0.7 if missing else None
            for data_map, backend in ((ours, NAME), (theirs, "reference")):
                data_map.update(p, ids, valid=valid, backend=backend)
        assert_equal_maps(ours, theirs)
        assert ours.num_rejected > 0 or missing


def step(targets: Tensor, ids: Tensor, layout: TaskLayout, data_map: DataMap) -> tuple[Tensor, Tensor]:
    logits = torch.ones(len(targets), layout.num_logits).requires_grad_()
    losses = multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, backend=NAME)
    (gradient,) = torch.autograd.grad(losses.nansum(), logits)
    return losses.detach(), gradient


@pytest.mark.parametrize("classes", [[3, 1, 2], [3, 300, 2]], ids=["whole rows", "streamed"])
def test_faults(classes: list[int], poisoned: None) -> None:
    """The rows concerned are not recorded, the others are; the loss is NaN; the error surfaces at the next read."""
    layout = TaskLayout(["a", "b", "c"], classes)
    good = torch.zeros(4, 3, dtype=torch.long)
    for column, label in ((0, 3), (1, max(2, classes[1])), (2, -1)):
        data_map, targets = DataMap(5, layout), good.clone()
        targets[2, column] = label
        losses, gradient = step(targets, torch.arange(4), layout, data_map)
        assert losses.isnan().tolist() == [t == column for t in range(3)]
        assert not gradient[2, layout.columns(column)].any()
        with pytest.raises(InvalidArgumentError, match=rf"row 2, column {column} holds {label}"):
            _ = data_map.count
        assert data_map.count[:, 0].tolist() == [1, 1, 0, 1, 0]
        assert data_map.num_rejected == 0
    for bad in (-1, 5, 2**40):
        data_map = DataMap(5, layout)
        losses, _ = step(good, torch.tensor([0, bad, 2, 0]), layout, data_map)
        assert bool(losses.isnan().all())
        with pytest.raises(SampleIdError, match=f"row 1 holds {bad}"):
            _ = data_map.count
        assert data_map.count[:, 0].tolist() == [2, 0, 1, 0, 0]
    data_map, targets = DataMap(5, layout), good.clone()
    targets[3, 1] = -100
    losses, _ = step(targets, torch.arange(4), layout, data_map)
    assert losses.isnan().tolist() == [False, True, False]
    with pytest.raises(MissingLabelError, match="task 'b' in row 3"):
        _ = data_map.count
    assert data_map.count[:, 0].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_extreme_logits_as_torch(classes: int) -> None:
    test_extreme_logits.test_as_torch(classes, 1, torch.float32, NAME)


@pytest.mark.parametrize("classes", [[1] * 5, [3, 1, 2], [40, 1], [2] * 300, [300, 1]], ids=lambda c: str(c[:4]))
@pytest.mark.parametrize("missing", [False, True])
def test_map_refuses_the_row(classes: list[int], missing: bool, generator: torch.Generator) -> None:
    test_extreme_logits.test_map_refuses_the_row(classes, missing, torch.float32, NAME, generator)


def test_determinism(generator: torch.Generator) -> None:
    """Threads run in another order each time: 20 runs give the same bits."""
    layout = random_layout(CLASSES["ragged"], generator, weighted=True)
    case = random_case(layout, 65, generator, missing="some")
    ids = torch.randint(20, (65,), generator=generator)
    seen = []
    for _ in range(20):
        data_map = DataMap(20, layout, missing=True)
        losses = multitask_cross_entropy(
            case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=NAME
        )
        (gradient,) = torch.autograd.grad((losses * case.upstream).sum(), case.logits)
        seen.append((losses.detach(), gradient, *data_map.state))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_no_state_no_gradient(generator: torch.Generator, poisoned: None) -> None:
    case = random_case(random_layout(CLASSES["ragged"], generator, weighted=True), 17, generator)
    losses = multitask_cross_entropy(case.logits.detach(), case.targets, case.layout, backend=NAME)
    torch.testing.assert_close(losses.double(), task_by_task(case).losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [[3, 1, 40], [4] * 300], ids=["odd width", "aligned"])
def test_scaling_in_place_and_not(classes: list[int], generator: torch.Generator) -> None:
    """A graph that is kept gives the same gradient again; upstream gradients of one, several, for all and a task."""
    case = random_case(random_layout(classes, generator, weighted=True), 35, generator)
    for upstream in (torch.ones_like(case.upstream), case.upstream, torch.tensor([1.0, *case.upstream.tolist()[1:]])):
        case.upstream = upstream
        _, expected = run(case, "reference")
        losses = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=NAME)
        for keep in (True, True, False):
            (gradient,) = torch.autograd.grad(losses, case.logits, case.upstream, retain_graph=keep)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    total, _ = weighted_multitask_cross_entropy(case.logits, case.targets, case.layout, upstream.abs(), backend=NAME)
    first = [torch.autograd.grad(total, case.logits, torch.tensor(f), retain_graph=f != 1)[0] for f in (3.0, 0.5, 1.0)]
    torch.testing.assert_close(first[0], 3 * first[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(first[1], 0.5 * first[2], rtol=1e-6, atol=0)
