"""Images kept as bytes come out scaled, one by one, batched, and in the trainers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from pymtg import STGTrainer, TaskLayout
from pymtg.data import PixelTasks, TaskData, collate, with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import convnet
from pymtg.trainers import TrainConfig
from pymtg.trainers._batches import batch_source
from pymtg.trainers._compare_seed import _hold_out

LAYOUT = TaskLayout.binary(["a", "b"])
ON_CPU = TrainConfig(batch_size=4, device="cpu")
FIGURES = ((0.5, 0.4), (0.2, 0.3))


@pytest.fixture
def images(generator):
    pixels = torch.randint(0, 256, (9, 2, 4, 5), generator=generator, dtype=torch.uint8)
    return PixelTasks(pixels, torch.randint(0, 2, (9, 2), generator=generator), LAYOUT, *FIGURES)


def scaled(data):
    mean, std = (np.array(figures)[:, None, None] for figures in FIGURES)
    return (data.inputs.numpy() / 255 - mean) / std


def test_every_way_out_gives_the_same_scaled_images(images):
    expected = scaled(images)
    ways = {
        "one by one": torch.stack([images[i][0] for i in range(9)]),
        "together": images.__getitems__(range(9)).columns[0],
        "loader": torch.cat([x for x, _ in DataLoader(images, 4)]),
        "our collate": torch.cat([x for x, _ in DataLoader(images, 4, collate_fn=collate)]),
        "ids": torch.cat([x for _, x, _ in DataLoader(with_ids(images), 4, collate_fn=collate)]),
        "subset": torch.cat([x for x, _ in DataLoader(Subset(images, range(9)), 2)]),
        "taken": torch.stack([x for x, _ in [images.take(torch.arange(9))[i] for i in range(9)]]),
        "pickled": pickle.loads(pickle.dumps(images)).__getitems__(range(9)).columns[0],
        "trainers": torch.cat([x for _, x, _ in batch_source(images, LAYOUT, ON_CPU, "d").in_order()]),
    }
    for way, found in ways.items():
        assert found.dtype == torch.float32, way
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, err_msg=way)
    assert images.inputs.dtype == torch.uint8


def test_without_figures_they_are_between_0_and_1(images):
    plain = PixelTasks(images.inputs, images.targets, LAYOUT)
    np.testing.assert_allclose(plain.__getitems__(range(9)).columns[0], images.inputs.numpy() / 255, atol=1e-6)
    assert str(plain) == "PixelTasks(9 samples of shape (2, 4, 5), 2 tasks)"


def test_select_shuffle_and_hold_out_keep_the_scaling(images):
    expected = scaled(images)
    source = batch_source(images, LAYOUT, ON_CPU, "data").select([1])
    for ids, inputs, targets in source.shuffled(torch.Generator().manual_seed(0)):
        np.testing.assert_allclose(inputs, expected[ids], atol=1e-5)
        assert torch.equal(targets, images.targets[ids][:, [1]])
    kept, out = _hold_out(images, 0)
    assert len(kept) + len(out) == 9
    assert kept.mean == out.mean == FIGURES[0]


def test_runs_are_told_apart_by_their_scaling(images):
    described = [
        batch_source(PixelTasks(images.inputs, images.targets, LAYOUT, *figures), LAYOUT, TrainConfig(), "d").describe()
        for figures in (FIGURES, (), FIGURES)
    ]
    assert described[0] == described[2] != described[1]


def test_a_trainer_learns_from_them(generator):
    pixels = torch.randint(0, 256, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)
    light = (pixels.float().mean((1, 2, 3)) > 128).long()
    pixels = (pixels // 2 + 127 * light.to(torch.uint8)[:, None, None, None]).to(torch.uint8)
    data = PixelTasks(pixels, torch.stack([light, 1 - light], 1), LAYOUT, [0.5], [0.25])
    tasks = TaskData("light", LAYOUT, data, data)
    trainer = STGTrainer(convnet(1, (4,)), tasks.layout, num_groups=1, epochs=8, lr=0.02, batch_size=8, progress=False)
    assert trainer.fit(tasks.train).evaluate(tasks.test)["stg_soft"].mean["accuracy"] > 0.9
    by_tensor = trainer.predict_proba(data.__getitems__(range(64)).columns[0])
    assert torch.allclose(trainer.predict_proba(data), by_tensor, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixels": torch.zeros(9, 2, 4, 5)}, InvalidTypeError, "pixels must be of dtype uint8"),
        ({"pixels": torch.zeros(9, 40, dtype=torch.uint8)}, InvalidArgumentError, r"\[samples, channels, H, W\]"),
        ({"mean": [0.5]}, InvalidArgumentError, "mean must be 2 finite numbers"),
        ({"mean": [0.5, float("nan")]}, InvalidArgumentError, "mean must be 2 finite numbers"),
        ({"std": [0.5, 0]}, InvalidArgumentError, "std must be above 0"),
        ({"std": "ab"}, InvalidTypeError, "std must be a sequence of numbers"),
        ({"mean": 0.5}, InvalidTypeError, "mean must be a sequence of numbers"),
    ],
)
def test_bad_arguments(images, change, error, message):
    arguments = {"pixels": images.inputs, "targets": images.targets, "layout": LAYOUT, **change}
    with pytest.raises(error, match=message):
        PixelTasks(**arguments)
