"""The Gram matrix as it is accumulated on a GPU, run on the CPU: nearly identical tasks keep nine digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pymtg import DataMap, TaskLayout
from pymtg._clustering import distances_from_gram
from pymtg._device_gram import device_gram

CPU = torch.device("cpu")


@pytest.mark.parametrize("tasks", [1, 2, 7, 33])
def test_against_extended_precision(tasks: int, generator: torch.Generator) -> None:
    slabs = [torch.rand(rows, tasks, generator=generator) for rows in (256, 1, 100)]
    X = torch.cat(slabs).numpy().astype(np.longdouble)
    X = X - X.mean(1, keepdims=True)
    got = device_gram(tasks, slabs, CPU)
    np.testing.assert_allclose(got.numpy(), (X.T @ X).astype(float), rtol=1e-12, atol=1e-12)
    assert torch.equal(got, got.T)
    assert not device_gram(tasks, [], CPU).any()


@pytest.mark.parametrize("apart", [1e-2, 1e-4])
def test_nearly_identical_tasks(apart: float, generator: torch.Generator) -> None:
    """Squared distances between tasks whose features differ by 1e-4, to 1e-9: what a float32 product has none of."""
    features = torch.rand(20_000, 1, generator=generator) + apart * torch.rand(20_000, 6, generator=generator)
    X = features.numpy().astype(np.longdouble)
    truth = ((X[:, :, None] - X[:, None, :]) ** 2).sum(0).astype(float)
    got = distances_from_gram(device_gram(6, features.split(1000), CPU).numpy())
    off_diagonal = ~np.eye(6, dtype=bool)
    error = np.abs(got - truth)[off_diagonal] / truth[off_diagonal]
    assert error.max() < 1e-9


def test_as_the_compiled_one(generator: torch.Generator) -> None:
    layout = TaskLayout.binary([f"task{t}" for t in range(9)])
    data_map = DataMap(50, layout, missing=True, ddof=1)
    for _ in range(3):
        valid = torch.rand(50, 9, generator=generator) < 0.8
        data_map.update(torch.rand(50, 9, generator=generator), torch.arange(50), valid=valid)
        data_map.snapshot(len(data_map.snapshots) + 1)
    got = sum(device_gram(9, snapshot.slabs(), CPU) for snapshot in data_map.snapshots)
    torch.testing.assert_close(got, data_map.gram(), rtol=1e-12, atol=1e-12)
