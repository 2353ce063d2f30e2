"""The data map's update: against every probability in float64, row by row, and against the reference."""

from __future__ import annotations

import copy

import pytest
import torch
from _cases import random_case, random_layout, task_by_task
from _map_truth import ListOfProbabilities

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy
from pymtg.kernels.triton import cross_entropy as launchers


def assert_same_bits(a: DataMap, b: DataMap) -> None:
    for ours, theirs in zip(a.state, b.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture(params=["compared", "sorted"])
def linked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Equal ids are found by comparing pairs in small batches, by sorting in large ones."""
    if request.param == "sorted":
        monkeypatch.setattr(launchers, "MOST_LINKED", 0)
    return request.param


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("classes", [[1, 2, 5], [1] * 18], ids=["ragged", "ones"])
def test_epochs(classes: list[int], missing: bool, linked: str, generator: torch.Generator, poisoned: None) -> None:
    layout = random_layout(classes, generator, weighted=True)
    data_map, truth = DataMap(12, layout, ddof=1, missing=missing), ListOfProbabilities(12, len(classes))
    for _ in range(8):
        rows = int(torch.randint(1, 12, (), generator=generator))
        ids = torch.randint(10, (rows,), generator=generator)
        case = random_case(layout, rows, generator, missing="some" if missing else "none")
        multitask_cross_entropy(case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend="triton")
        answer = task_by_task(case)
        truth.record(answer.gold, answer.right, answer.valid, ids)
    assert torch.equal(data_map.count, truth.count())
    torch.testing.assert_close(data_map.mean.double(), truth.mean(), rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(data_map.std.double(), truth.std(1), rtol=5e-6, atol=5e-7)
    torch.testing.assert_close(data_map.correctness.double(), truth.correctness(), rtol=1e-6, atol=0)
    assert not data_map.count[10:].any()


@pytest.mark.parametrize("missing", [False, True])
def test_duplicates_are_consecutive_rows(missing: bool, linked: str, generator: torch.Generator) -> None:
    """Bit for bit, over several blocks of rows and, where sorted, two runs of tasks."""
    layout = random_layout([*[1] * (520 if linked == "sorted" else 140), 4, 2], generator, weighted=False)
    case = random_case(layout, 9, generator, missing="some" if missing else "none")
    ids = torch.randint(4, (9,), generator=generator)
    maps = [DataMap(8, layout, missing=missing) for _ in range(3)]
    for data_map in maps[:2]:
        multitask_cross_entropy(case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend="triton")
    assert_same_bits(maps[0], maps[1])
    for sample in range(4):  # a sample's rows, in their order; samples do not meet
        rows = (ids == sample).nonzero()[:, 0]
        for row in rows.tolist():
            one = slice(row, row + 1)
            multitask_cross_entropy(
                case.logits[one], case.targets[one], layout, data_map=maps[2], sample_ids=ids[one], backend="triton"
            )
    assert_same_bits(maps[0], maps[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("missing", [False, True])
def test_recording_changes_no_loss(
    missing: bool, dtype: torch.dtype, generator: torch.Generator, poisoned: None
) -> None:
    layout = random_layout([1] * 5 + [3, 2, 1100], generator, weighted=True)
    case = random_case(layout, 9, generator, dtype=dtype, missing="some" if missing else "none")
    data_map = DataMap(20, layout, missing=missing)
    ids = torch.randperm(20, generator=generator)[:9]
    options = {"ignore_index": case.ignore_index, "backend": "triton"}
    losses = multitask_cross_entropy(
        case.logits, case.targets, layout, data_map=data_map, sample_ids=ids.int(), **options
    )
    assert torch.equal(losses, multitask_cross_entropy(case.logits, case.targets, layout, **options))
    truth = task_by_task(case)
    torch.testing.assert_close(data_map.mean[ids].double(), truth.gold * truth.valid, rtol=4e-6, atol=1e-8)
    assert torch.equal(data_map.correctness[ids] > 0, truth.right & truth.valid)
    assert torch.equal(data_map.count[ids], truth.valid.int())
    assert not data_map.std.any()
    untouched = torch.ones(20, dtype=torch.bool).index_fill(0, ids, False)
    assert not data_map.state.words[untouched].any()
    assert not data_map.count[untouched].any()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("classes", [[1] * 5, [3, 1, 2], [40, 1100]], ids=str)
def test_rows_with_infinite_losses_are_refused(
    classes: list[int], missing: bool, linked: str, generator: torch.Generator
) -> None:
    """Whole, also where the loss stands in another tile or another row of the sample is kept."""
    layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
    case = random_case(layout, 10, generator)
    logits, targets = case.logits.detach(), case.targets
    for row, value in ((2, torch.nan), (7, torch.inf)):
        logits[row, int(torch.randint(layout.num_logits, (), generator=generator))] = value
    if missing:
        targets[2] = -100  # where its label is missing, a logit's value does not matter
    got, expected = DataMap(5, layout, missing=missing), DataMap(5, layout, missing=missing)
    ids = torch.arange(10) // 2
    for data_map, backend in ((got, "triton"), (expected, "reference")):
        multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, backend=backend)
    assert torch.equal(got.count, expected.count)
    assert got.num_rejected == expected.num_rejected <= 2
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got.std, expected.std, rtol=1e-5, atol=1e-7)


def test_update(linked: str, generator: torch.Generator) -> None:
    """Probabilities computed elsewhere; any split into batches gives the same bits; a negative zero is no hit."""
    p = torch.rand(24, 5, generator=generator)
    p[0, 0], p[1, 0], p[3, 3] = -0.0, 1, torch.nan
    ids = torch.randint(4, (24,), generator=generator)
    valid = torch.rand(24, 5, generator=generator) < 0.7
    correct = torch.rand(24, 5, generator=generator) < 0.5
    layout = TaskLayout.binary([f"task{t}" for t in range(5)])
    at_once, split, expected = (DataMap(4, layout, missing=True) for _ in range(3))
    at_once.update(p, ids, correct=correct, valid=valid, backend="triton")
    expected.update(p, ids, correct=correct, valid=valid, backend="reference")
    for part in torch.arange(24).split([1, 0, 9, 14]):
        split.update(p[part], ids[part].int(), correct=correct[part], valid=valid[part], backend="triton")
    assert_same_bits(at_once, split)
    assert torch.equal(at_once.count, expected.count)
    assert torch.equal(at_once.correctness, expected.correctness)
    torch.testing.assert_close(at_once.mean, expected.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(at_once.std, expected.std, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("missing", [False, True])
def test_counts_stop(missing: bool) -> None:
    """At 4,095 right predictions, and at what the counts' type holds."""
    layout = TaskLayout.binary(["a"])
    got, expected = DataMap(1, layout, missing=missing), DataMap(1, layout, missing=missing)
    for data_map, backend in ((got, "triton"), (expected, "reference")):
        data_map.update(torch.ones(2, 1), torch.tensor([0, 0]), backend="reference")
        for count in (62, 4094, 32766, 2**31 - 2):
            if missing and count > 32767:
                break
            data_map.state.counts.fill_(count)
            data_map.update(torch.tensor([[0.9], [0.1], [0.7]]), torch.tensor([0, 0, 0]), backend=backend)
    assert_same_bits(got, expected)


def test_strided_ids(generator: torch.Generator) -> None:
    layout = TaskLayout.binary(["a", "b"])
    case = random_case(layout, 6, generator)
    ids = torch.tensor([4, 0, 3, 0, 1, 4])
    maps = [DataMap(5, layout) for _ in range(2)]
    for data_map, given in zip(maps, (ids, torch.stack([ids, ids - 9], 1)[:, 0].int()), strict=True):
        multitask_cross_entropy(
            case.logits, case.targets, layout, data_map=data_map, sample_ids=given, backend="triton"
        )
    assert_same_bits(*maps)
    before = copy.deepcopy(maps[0])
    empty = torch.zeros((0, 2))
    multitask_cross_entropy(
        empty, empty.long(), layout, data_map=maps[0], sample_ids=torch.zeros(0, dtype=torch.long), backend="triton"
    )
    assert_same_bits(maps[0], before)
