"""What a data map records, against the list of every probability; and its ways of being read."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from _cases import random_case, random_layout, task_by_task
from _map_truth import ListOfProbabilities
from _settings import BACKENDS, ISAS
from torch import Tensor

from pymtg import DataMap, MultiTaskLoss, TaskLayout
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


def test_copies(generator: torch.Generator, tmp_path: Path) -> None:
    data_map = DataMap(4, TWO, missing=True)
    data_map.update(torch.rand(3, 2, generator=generator), torch.tensor([0, 1, 1]))
    data_map.snapshot(1)
    torch.save(data_map, tmp_path / "map.pt")
    copies = [
        copy.deepcopy(data_map),
        pickle.loads(pickle.dumps(data_map)),
        torch.load(tmp_path / "map.pt", weights_only=False),
        copy.deepcopy(MultiTaskLoss(TWO, data_map)).data_map,
        pickle.loads(pickle.dumps(MultiTaskLoss(TWO, data_map))).data_map,
    ]
    before = copy.deepcopy(data_map)
    for other in copies:
        assert_same_bits(other, data_map)
        assert other.layout == data_map.layout
        assert [s.epoch for s in other.snapshots] == [1]
        other.update(torch.rand(1, 2, generator=generator), torch.tensor([3]))
        assert_same_bits(data_map, before)


def _in_child(logits: Tensor, queue) -> None:
    torch.set_num_threads(1)
    targets = torch.ones(len(logits), 2, dtype=torch.long)
    data_map = DataMap(len(logits), TWO)
    losses = multitask_cross_entropy(
        logits, targets, TWO, data_map=data_map, sample_ids=torch.arange(len(logits)), backend="cpp"
    )
    queue.put((losses.tolist(), data_map.mean.tolist()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_process(generator: torch.Generator, two_threads: None) -> None:
    """As in a DataLoader's worker, after the parent has used its threads."""
    logits = torch.randn(30_000, 2, generator=generator)
    targets = torch.ones(30_000, 2, dtype=torch.long)
    expected = multitask_cross_entropy(logits, targets, TWO, backend="cpp")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(logits, queue))
    child.start()
    losses, mean = queue.get()
    child.join(60)
    assert child.exitcode == 0
    assert losses == expected.tolist()
    torch.testing.assert_close(torch.tensor(mean), logits.sigmoid())


_ON_AN_ISA = """
import sys, torch
from pymtg import DataMap, TaskLayout, _core
from pymtg.functional import multitask_cross_entropy
torch.set_num_threads(1)
given = torch.load(sys.argv[1])
assert _core.isa() == sys.argv[3], _core.isa()
results = []
for classes, logits, targets, ids in given:
    layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
    data_map = DataMap(60, layout, missing=True)
    logits.requires_grad_()
    losses = multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, backend="cpp")
    losses.sum().backward()
    results.append((losses.detach(), logits.grad, data_map.mean, data_map.std, data_map.correctness, data_map.count))
torch.save(results, sys.argv[2])
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, generator: torch.Generator, tmp_path: Path) -> None:
    """Each build of the hot loops, in a process of its own, within rounding of the reference."""
    given = []
    for classes in ([1] * 25, [2] * 37, [1, 300, 2, 7, 1, 3], [1] * 24 + [3] + [2] * 24):
        layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
        case = random_case(layout, 77, generator, missing="some")
        ids = torch.randint(60, (77,), generator=generator)
        given.append((classes, case.logits.detach(), case.targets, ids))
    torch.save(given, tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", _ON_AN_ISA, str(tmp_path / "given.pt"), str(tmp_path / "results.pt"), isa],
        env=os.environ | {"PYMTG_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "goes no further than" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    for (classes, logits, targets, ids), results in zip(given, torch.load(tmp_path / "results.pt"), strict=True):
        layout = TaskLayout([f"task{t}" for t in range(len(classes))], classes)
        data_map = DataMap(60, layout, missing=True)
        logits = logits.clone().requires_grad_()
        losses = multitask_cross_entropy(
            logits, targets, layout, data_map=data_map, sample_ids=ids, backend="reference"
        )
        losses.sum().backward()
        expected = (losses.detach(), logits.grad, data_map.mean, data_map.std, data_map.correctness, data_map.count)
        for got, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-5, atol=5e-7)


def test_backends_mix(generator: torch.Generator) -> None:
    """One map, fed by every backend in turn: the state means the same to all."""
    mixed, one = DataMap(9, TWO), DataMap(9, TWO)
    for step in range(20):
        p, ids = torch.rand(12, 2, generator=generator), torch.randint(9, (12,), generator=generator)
        mixed.update(p, ids, backend=BACKENDS[step % len(BACKENDS)])
        one.update(p, ids, backend="reference")
    torch.testing.assert_close(mixed.mean, one.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mixed.std, one.std, rtol=1e-5, atol=1e-6)
    assert torch.equal(mixed.correctness, one.correctness)
    assert torch.equal(mixed.count, one.count)
