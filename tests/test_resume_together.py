"""Networks trained together are stopped and gone on with as one is."""

from __future__ import annotations

import json
import random

import pytest
from _resume_run import Bomb, Countdown, assert_same, learned, make, milestones
from _resume_run import together as trainer

from pymtg.errors import InvalidArgumentError
from pymtg.nets._side_by_side import SideBySide

STEPS = 3 * 10  # of the stage: epochs, batches


OPTIONS = {"epochs": 2, "num_groups": 3, "lr": 0.1, "checkpoint_every": "1,0.001s"}  # at almost every batch


@pytest.fixture
def stop(monkeypatch):
    """Let the stage end by an exception before a step, counted from where it goes on."""
    forward = SideBySide.forward

    def set_to(left):
        countdown = Countdown(left)

        def counted(self, inputs):
            if self.training:
                countdown()
            return forward(self, inputs)

        monkeypatch.setattr(SideBySide, "forward", counted)

    return set_to


@pytest.mark.parametrize("more", [{}, {"init": "joint", "scheduler": milestones, "num_groups": "auto"}])
def test_a_stage_that_is_stopped_at_random_batches_ends_the_same(more, seed, stop, tmp_path):
    data, rng, options = (make(seed), make(seed + 1)), random.Random(seed), OPTIONS | more
    whole = learned(trainer(seed, **options).fit(*data))
    assert whole[1]["together"]
    places = {"checkpoint_dir": tmp_path / "kept", "log": tmp_path / "log.jsonl"}
    for _ in range(4):
        stop(rng.randint(2, STEPS // 4))
        with pytest.raises(Bomb):
            trainer(seed, **options, **places).fit(*data, resume=True)
    stop(None)
    assert_same(learned(trainer(seed, **options, **places).fit(*data, resume=True)), whole)
    lines = [json.loads(line) for line in places["log"].read_text(encoding="utf-8").splitlines()]
    groups = len(whole[1]["stages"]) - 1
    expected = [("joint", 1), ("joint", 2)] + [(f"group {k}", e) for e in (1, 2, 3) for k in range(groups)]
    assert [(line["stage"], line["epoch"]) for line in lines] == expected
    assert lines[-1]["left"] == 0
    again = trainer(seed, **options, **places).fit(*data, resume=True)  # the stage is finished there
    assert_same(learned(again), whole)


def test_a_checkpoint_of_the_other_form_is_refused(seed, stop, tmp_path):
    data = (make(seed), make(seed + 1))
    stop(12)
    with pytest.raises(Bomb):
        trainer(seed, **OPTIONS, checkpoint_dir=tmp_path).fit(*data)
    with pytest.raises(InvalidArgumentError, match=r"options specialise \('together' there, 'one-by-one' here\)"):
        trainer(seed, **OPTIONS, specialise="one-by-one", checkpoint_dir=tmp_path).fit(*data, resume=True)
