"""What the tests of runs that go on share: going on, runs that were stopped, files that were damaged."""

from __future__ import annotations

import pytest
from _resume_run import Bomb, Countdown, learned, make, stg

OFTEN = {"checkpoint_every": "1,0.001s"}  # at almost every batch


def fit(trainer, data, resume=True):
    return learned(trainer.fit(*data, resume=resume))


def lines_of(path):
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def stopped(directory, seed, method=stg, batches=30, **options):
    """Leave a run that was stopped; return its data."""
    data = (make(seed), make(seed + 1))
    with pytest.raises(Bomb):
        fit(method(seed, Countdown(batches), checkpoint_dir=directory, **options), data)
    return data


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
