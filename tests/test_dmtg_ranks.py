"""Two processes with half of every batch each, against one process with the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _dmtg_rank import RANKS, train
from _settings import new_seed

SAMPLINGS = ("gumbel", "hard", "per_sample", "softmax")
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What both ranks saw, per sampling, and the seed."""
    folder, seed = tmp_path_factory.mktemp("ranks"), new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    script = str(Path(__file__).with_name("_dmtg_rank.py"))
    outs = [folder / f"rank{rank}.pt" for rank in range(RANKS)]
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(folder / "meeting"), str(seed), str(out), *SAMPLINGS],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        messages = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(messages)
    return [torch.load(out) for out in outs], seed


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_ranks_train_as_one_process_does(records, sampling):
    ranks, seed = records
    one = train(sampling, seed, None)
    for step, shares in enumerate(one["shares"]):
        parts = [rank[sampling]["shares"][step] for rank in ranks]
        if sampling == "per_sample":
            torch.testing.assert_close(torch.cat(parts), shares, rtol=0, atol=1e-6)
        else:
            assert torch.equal(parts[0], parts[1])
            torch.testing.assert_close(parts[0], shares, rtol=0, atol=1e-6)
    for rank in ranks:
        for mine, theirs in zip(rank[sampling]["gradients"], one["gradients"], strict=True):
            assert mine.keys() == theirs.keys()
            for name, gradient in mine.items():
                torch.testing.assert_close(
                    gradient, theirs[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n} {m}"
                )
        for name, value in rank[sampling]["state"].items():
            torch.testing.assert_close(value, one["state"][name], rtol=1e-6, atol=1e-6)
    assert one["state"]["assignment._extra_state"][0] == (0 if sampling == "softmax" else 5)  # draws
