"""Mistakes that a user makes once: each is either told or made harmless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pymtg import STGTrainer, TaskLayout
from pymtg.errors import InvalidArgumentError
from pymtg.nets import mlp

LAYOUT = TaskLayout.binary(["a", "b", "c"])


@pytest.fixture
def arrays():
    rng = np.random.default_rng()
    return rng.normal(size=(40, 5)), rng.integers(0, 2, (40, 3))


def trainer(model=None, **options):
    return STGTrainer(model or mlp(5, (8,)), LAYOUT, num_groups=2, epochs=2, num_threads=1, **options)


def test_a_factory_that_hands_out_one_network_twice_is_refused(arrays):
    network = nn.Linear(5, 3)
    with pytest.raises(InvalidArgumentError, match="model must build a new network at each call"):
        trainer(lambda layout: network).fit(arrays)


def test_float64_arrays_are_predicted_as_they_were_fitted(arrays):
    inputs, targets = arrays
    fitted = trainer().fit((inputs, targets))
    expected = fitted.predict_proba(torch.from_numpy(inputs).float())
    torch.testing.assert_close(fitted.predict_proba(inputs), expected, rtol=0, atol=0)


def test_a_dataset_of_floating_targets_trains_as_the_arrays_do(arrays):
    inputs, targets = arrays[0].astype(np.float32), arrays[1].astype(np.float32)
    targets[3, 1] = np.nan
    samples = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(inputs, targets, strict=True)]
    one, other = trainer(missing=True).fit(samples), trainer(missing=True).fit((inputs, targets))
    assert one.data_map_.count[3].tolist() == [2, 0, 2]
    assert torch.equal(one.data_map_.mean, other.data_map_.mean)


def test_fractions_as_targets_are_refused(arrays):
    samples = [(torch.zeros(5), torch.tensor([0.5, 1.0, 0.0]))] * 4
    with pytest.raises(InvalidArgumentError, match=r"class numbers as targets .* got 0.5"):
        trainer().fit(samples)


def test_more_threads_than_a_machine_can_start_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"num_threads must be at most .* got 100000"):
        STGTrainer(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1, num_threads=100_000)
