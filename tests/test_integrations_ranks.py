"""Two processes that train together: their maps become one, in which every observation is counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _integrations_rank import LAYOUT, RANKS, RESUMES, SIZE
from _settings import new_seed

from pymtg import DataMap
from pymtg.functional import multitask_cross_entropy

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
    ),
    pytest.mark.timeout(600),  # two processes import everything: minutes on a machine that does much else
]
TRAINERS = ("lightning", "huggingface")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What both processes recorded and saw."""
    folder, seed = tmp_path_factory.mktemp("ranks"), new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    script = str(Path(__file__).with_name("_integrations_rank.py"))
    run = subprocess.run(
        [sys.executable, script, str(folder), str(seed)],
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def restored(state):
    data_map = DataMap(SIZE, LAYOUT, missing=state["counts"].dim() == 2)
    data_map.load_state_dict(state)
    return data_map


def of_rows(ranks, drop=()):
    """Return the map of the rows that all ranks saw, but for those to drop, as (rank, batch, row)."""
    data_map = DataMap(SIZE, LAYOUT, missing=True)
    for rank, batches in enumerate(ranks):
        for number, (logits, targets, ids) in enumerate(batches):
            keep = [row for row in range(len(ids)) if (rank, number, row) not in drop]
            multitask_cross_entropy(
                logits[keep], targets[keep].long(), LAYOUT, data_map=data_map, sample_ids=ids[keep].long()
            )
    return data_map


def close(mine, theirs):
    assert torch.equal(mine.count, theirs.count)
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(mine.std, theirs.std, rtol=2e-5, atol=2e-5)
    assert torch.equal(mine.correctness, theirs.correctness)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_sample_is_recorded_once_an_epoch(records, trainer):
    maps = [restored(rank[trainer]["map"]) for rank in records]
    for mine in maps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(mine.state, maps[0].state, strict=True))
    assert maps[0].count.eq(3).all()
    assert maps[0].snapshot_epochs == (2,)
    assert maps[0].snapshots[0].count.eq(2).all()
    seen = [rank[trainer]["seen"] for rank in records]
    rows = sum(len(ids) for batches in seen for *_, ids in batches)
    assert rows > 3 * SIZE, "there are copies"
    # the copies are at the end of an epoch: among the last rows of the ranks' last batches those that stand twice
    copies = set()
    for epoch in range(3):
        per_epoch = len(seen[0]) // 3
        met = set()
        for number in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            width = max(len(batches[number][2]) for batches in seen)
            order = (
                [(rank, row) for row in range(width) for rank in range(RANKS)]  # dealt out one by one
                if trainer == "lightning"
                else [(rank, row) for rank in range(RANKS) for row in range(width)]  # by batches
            )
            for rank, row in order:
                ids = seen[rank][number][2].tolist()
                if row < len(ids) and ids[row] in met:
                    copies.add((rank, number, row))
                met |= {ids[row]} if row < len(ids) else set()
    assert len(copies) == rows - 3 * SIZE
    close(maps[0], of_rows(seen, copies))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_resumed_training_ends_with_the_map_of_one_never_stopped(records, trainer):
    if not RESUMES[trainer]:
        pytest.skip("this transformers cannot resume on several processes of a CPU")
    for rank in records:
        whole, resumed = restored(rank[trainer]["map"]), restored(rank[f"{trainer} resumed"]["map"])
        assert len(rank[f"{trainer} resumed"]["seen"]) < len(rank[trainer]["seen"])
        assert resumed.snapshot_epochs == whole.snapshot_epochs
        assert all(torch.equal(a, b) for a, b in zip(resumed.state, whole.state, strict=True))


def test_a_metric_is_that_of_all_rows(records):
    parts = [rank["metric"] for rank in records]
    expected = of_rows([part["seen"] for part in parts])
    for rank, part in enumerate(parts):
        close(restored(part["map"]), expected)
        torch.testing.assert_close(part["computed"]["mean"], expected.mean, rtol=2e-6, atol=2e-6)
        alone = of_rows([part["seen"]])
        assert torch.equal(restored(part["alone"]).state.words, alone.state.words), f"rank {rank} goes on with its own"


def test_disagreements_are_told_to_every_process(records):
    for rank in records:
        assert "rank 1 recorded none" in rank["told"][0]
        assert "every rank must have the same data map's layout, samples" in rank["told"][1]
