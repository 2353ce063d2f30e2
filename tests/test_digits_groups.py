"""STG on the digits: the tasks that hardly can be learned are told from the digits."""

from __future__ import annotations

import pytest

from pymtg import STGTrainer
from pymtg.data import digits
from pymtg.nets import mlp


@pytest.mark.parametrize("seed", range(5))
def test_flipped_and_random_share_a_group_without_digits(seed):
    data = digits(seed=seed)
    trainer = STGTrainer(
        mlp(64, (128, 128)), data.layout, num_groups=3, epochs=20, specialised_epochs=1, seed=seed, num_threads=1
    )
    groups = trainer.fit(data.train).groups_
    (theirs,) = [group for group in groups.groups if "random" in group]
    assert "flipped" in theirs
    assert not any(name.startswith("is-") for name in theirs), theirs
