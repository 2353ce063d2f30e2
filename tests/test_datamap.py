"""What a data map records, against the list of every probability; and its ways of being read."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from _cases import random_case, random_layout, task_by_task
from _map_truth import ListOfProbabilities

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy

TWO = TaskLayout.binary(["a", "b"])


def assert_same_bits(a: DataMap, b: DataMap) -> None:
    for ours, theirs in zip(a.state, b.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("classes", [[1, 2, 5], [1] * 25, [2] * 26], ids=["ragged", "ones", "twos"])
def test_fifty_epochs(classes: list[int], missing: bool, ddof: int, backend: str, generator: torch.Generator) -> None:
    """50 epochs of random batches, duplicates in and across them, against every probability in float64."""
    layout = random_layout(classes, generator, weighted=True)
    data_map = DataMap(40, layout, ddof=ddof, missing=missing)
    truth = ListOfProbabilities(40, layout.num_tasks)
    for _ in range(50):
        rows = int(torch.randint(1, 40, (), generator=generator))
        ids = torch.randint(38, (rows,), generator=generator)  # samples 38 and 39 are never seen
        case = random_case(layout, rows, generator, missing="some" if missing else "none")
        multitask_cross_entropy(case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=backend)
        answer = task_by_task(case)
        truth.record(answer.gold, answer.right, answer.valid, ids)
    assert torch.equal(data_map.count, truth.count())
    torch.testing.assert_close(data_map.mean.double(), truth.mean(), rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(data_map.std.double(), truth.std(ddof), rtol=5e-6, atol=5e-7)
    torch.testing.assert_close(data_map.correctness.double(), truth.correctness(), rtol=1e-6, atol=0)
    assert not data_map.count[38:].any()
    assert not data_map.mean[38:].any()
    assert not data_map.std[38:].any()


@pytest.mark.parametrize("missing", [False, True])
def test_duplicates_are_consecutive_rows(missing: bool, backend: str, generator: torch.Generator) -> None:
    layout = random_layout([*[1] * 27, 4, 2, 3], generator, weighted=False)
    case = random_case(layout, 120, generator, missing="some" if missing else "none")
    ids = torch.randint(30, (120,), generator=generator)
    at_once, one_by_one = DataMap(30, layout, missing=missing), DataMap(30, layout, missing=missing)
    multitask_cross_entropy(case.logits, case.targets, layout, data_map=at_once, sample_ids=ids, backend=backend)
    for row in range(120):
        one = slice(row, row + 1)
        multitask_cross_entropy(
            case.logits[one], case.targets[one], layout, data_map=one_by_one, sample_ids=ids[one], backend=backend
        )
    if backend == "cpp":  # torch's own sigmoid gives the last bit by a number's place in memory
        assert_same_bits(at_once, one_by_one)
    torch.testing.assert_close(at_once.mean, one_by_one.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(at_once.std, one_by_one.std, rtol=1e-5, atol=1e-7)
    assert torch.equal(at_once.count, one_by_one.count)
    assert torch.equal(at_once.correctness, one_by_one.correctness)


@pytest.mark.parametrize("missing", [False, True])
def test_update(missing: bool, backend: str, generator: torch.Generator) -> None:
    """Probabilities computed elsewhere; any split into batches gives the same bits."""
    p = torch.rand(60, 19, generator=generator)
    p[0, 0], p[1, 0] = 0, 1
    ids = torch.randint(9, (60,), generator=generator)
    valid = torch.rand(60, 19, generator=generator) < 0.7 if missing else torch.ones(60, 19, dtype=torch.bool)
    correct = torch.rand(60, 19, generator=generator) < 0.5
    layout = TaskLayout.binary([f"task{t}" for t in range(19)])
    at_once, split = DataMap(9, layout, missing=missing), DataMap(9, layout, missing=missing)
    at_once.update(p, ids, correct=correct, valid=valid, backend=backend)
    for part in torch.arange(60).split([1, 0, 20, 7, 32]):
        split.update(p[part], ids[part].int(), correct=correct[part], valid=valid[part], backend=backend)
    assert_same_bits(at_once, split)
    truth = ListOfProbabilities(9, 19)
    truth.record(p.double(), correct, valid, ids)
    torch.testing.assert_close(at_once.mean.double(), truth.mean(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(at_once.std.double(), truth.std(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(at_once.correctness.double(), truth.correctness(), rtol=1e-6, atol=0)


def test_update_takes_half_and_views(backend: str, generator: torch.Generator) -> None:
    p = torch.rand(2, 8, generator=generator).bfloat16().T
    got, expected = DataMap(4, TWO), DataMap(4, TWO)
    ids = torch.tensor([3]).expand(8)
    got.update(p, ids, backend=backend)
    expected.update(p.float().contiguous(), ids.contiguous(), backend=backend)
    assert_same_bits(got, expected)
    assert got.count[3].tolist() == [8, 8]


def test_a_negative_zero_is_not_right(backend: str) -> None:
    data_map = DataMap(1, TWO)
    data_map.update(torch.tensor([[-0.0, 0.0]]), torch.tensor([0]), backend=backend)
    assert data_map.correctness.tolist() == [[0, 0]]
    data_map.update(torch.tensor([[-0.0, 0.0]]), torch.tensor([0]), correct=torch.ones(1, 2) > 0, backend=backend)
    assert data_map.correctness.tolist() == [[0.5, 0.5]]


def test_update_refuses_rows(backend: str) -> None:
    data_map = DataMap(3, TWO, missing=True)
    p = torch.tensor([[0.5, torch.nan], [torch.inf, 0.5], [0.25, torch.nan], [0.25, 0.5]])
    valid = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    data_map.update(p, torch.tensor([0, 0, 1, 2]), valid=valid, backend=backend)
    assert data_map.num_rejected == 2
    assert data_map.count.tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("missing", [False, True])
def test_ids(missing: bool, backend: str, generator: torch.Generator) -> None:
    """int32, int64, strided and expanded ids are the same ids."""
    case = random_case(TWO, 6, generator)
    ids = torch.tensor([4, 0, 3, 0, 1, 4])
    strided = torch.full((6, 3), -5)
    strided[:, 1] = ids
    maps = []
    for form in (ids, ids.int(), strided[:, 1], strided.int()[:, 1]):
        maps.append(DataMap(5, TWO, missing=missing))
        multitask_cross_entropy(case.logits, case.targets, TWO, data_map=maps[-1], sample_ids=form, backend=backend)
        assert_same_bits(maps[-1], maps[0])
    expanded = DataMap(5, TWO, missing=missing)
    multitask_cross_entropy(
        case.logits, case.targets, TWO, data_map=expanded, sample_ids=torch.tensor([2]).expand(6), backend=backend
    )
    assert expanded.count[2].tolist() == [6, 6]


def test_counts_past_4095(backend: str) -> None:
    """Correctness is that of the first 4,095 observations; mean and deviation go on."""
    for missing in (False, True):
        data_map = DataMap(1, TWO, missing=missing)
        p = torch.tensor([[0.75, 0.25]]).expand(4095, 2)
        data_map.update(p, torch.zeros(4095, dtype=torch.long), backend=backend)
        assert data_map.correctness.tolist() == [[1, 0]]
        data_map.update(1 - p[:1000], torch.zeros(1000, dtype=torch.long), backend=backend)
        assert data_map.count.tolist() == [[5095, 5095]]
        assert data_map.correctness.tolist() == [[1, 0]]
        expected = torch.tensor([[4095 * 0.75 + 250, 4095 * 0.25 + 750]]) / 5095
        torch.testing.assert_close(data_map.mean, expected, rtol=2e-5, atol=0)


def test_counts_stop(backend: str) -> None:
    """At 32,767 where labels may be missing, at 2^31 - 1 elsewhere; the weights stay at one over that."""
    data_map = DataMap(1, TWO, missing=True)
    data_map.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), backend=backend)
    data_map.state.counts[0, 0] = 32766
    for _ in range(3):
        data_map.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), backend=backend)
    assert data_map.count.tolist() == [[32767, 4]]
    data_map.update(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), backend=backend)
    torch.testing.assert_close(data_map.mean, torch.tensor([[0.5 + 0.5 / 32767, 0.6]]))

    complete = DataMap(1, TWO)
    complete.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), backend=backend)
    complete.state.counts.fill_(2**31 - 2)
    for _ in range(3):
        complete.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), backend=backend)
    assert complete.count.tolist() == [[2**31 - 1] * 2]
    assert complete.merge_(copy.deepcopy(complete)).count.tolist() == [[2**31 - 1] * 2]
    assert complete.mean.tolist() == [[0.5, 0.5]]


def test_one_observation() -> None:
    for ddof in (0, 1):
        data_map = DataMap(2, TWO, ddof=ddof)
        data_map.update(torch.tensor([[0.3, 0.9]]), torch.tensor([1]))
        assert data_map.std.tolist() == [[0, 0], [0, 0]]
        torch.testing.assert_close(data_map.mean, torch.tensor([[0, 0], [0.3, 0.9]]))


@pytest.mark.parametrize("missing", [False, True])
def test_nbytes(missing: bool) -> None:
    data_map = DataMap(101, TaskLayout.binary(list("abcdefg")), missing=missing)
    assert data_map.nbytes == (10 * 101 * 7 + 8 if missing else 8 * 101 * 7 + 4 * 101 + 8)


def test_repr() -> None:
    data_map = DataMap(3, TWO, ddof=1)
    data_map.snapshot(5)
    assert repr(data_map) == "DataMap(3 samples, 2 tasks, ddof=1, missing=False, device='cpu', snapshots=[5])"


@pytest.mark.parametrize("task", ["b", 1, -1])
def test_to_dataframe(task: str | int, generator: torch.Generator) -> None:
    pytest.importorskip("pandas")
    data_map = DataMap(3, TWO)
    data_map.update(torch.rand(4, 2, generator=generator), torch.tensor([0, 2, 2, 0]))
    frame = data_map.to_dataframe(task)
    assert list(frame.columns) == ["mean", "std", "correctness", "count"]
    assert frame.index.name == "sample_id"
    for name in frame.columns:
        np.testing.assert_array_equal(frame[name].to_numpy(), getattr(data_map, name)[:, 1].numpy())
