"""Data maps copied, in other processes, on every instruction set, fed by several backends."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _cases import random_case
from _settings import BACKENDS, ISAS
from torch import Tensor

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.functional import multitask_cross_entropy

TWO = TaskLayout.binary(["a", "b"])


def assert_same_bits(a: DataMap, b: DataMap) -> None:
    for ours, theirs in zip(a.state, b.state, strict=True):
        assert torch.equal(ours, theirs)


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
