"""Try an installed pymtg: the loss, a data map, clustering, a short training. Run with the Python it is installed in.

``python smoke.py [DIR]``, DIR being where pymtg has to come from. For wheels (`make check-dist`, cibuildwheel), so not
a pytest module: it needs pymtg and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import pymtg
import pymtg._core
from pymtg.data import from_arrays
from pymtg.nets import mlp

SOURCES = Path(__file__).resolve().parent.parent / "pymtg"


def check_place() -> None:
    """The installed package is tried, not the sources beside this file."""
    for module in (pymtg, pymtg._core):
        found = Path(module.__file__).resolve()
        assert SOURCES not in found.parents, found
        assert all(Path(place).resolve() in found.parents for place in sys.argv[1:]), found
    assert "cpp" in pymtg.available_backends(), "no compiled kernels"


def check_loss() -> None:
    layout = pymtg.TaskLayout(["a", "b"], [1, 3])
    data_map = pymtg.DataMap(4, layout)
    logits = torch.zeros(4, 4, requires_grad=True)
    loss = pymtg.MultiTaskLoss(layout, data_map)(logits, torch.zeros(4, 2, dtype=torch.long), torch.arange(4))
    loss.backward()
    assert abs(loss.item() - 1.791759) < 1e-5
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert data_map.mean.allclose(torch.tensor([0.5, 1 / 3]).expand(4, 2))


def check_clustering() -> None:
    labels = pymtg.FuzzyKMeans(2, random_state=0).fit([[0.0], [0.1], [5.0], [5.1]]).labels_.tolist()
    assert labels in ([0, 0, 1, 1], [1, 1, 0, 0]), labels


def check_training() -> None:
    layout = pymtg.TaskLayout.binary(["a", "b", "c"])
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = from_arrays(inputs, (inputs[:, :3] > 0).long(), layout)
    options = {"epochs": 2, "device": "cpu", "num_threads": 1, "progress": False}
    trainer = pymtg.STGTrainer(mlp(4, (8,)), layout, num_groups=2, **options).fit(data)
    assert trainer.groups_.memberships.shape == (3, 2)
    assert 0 <= trainer.evaluate(data)["stg_soft"].mean["accuracy"] <= 1


if __name__ == "__main__":
    for check in (check_place, check_loss, check_clustering, check_training):
        check()
    print(f"pymtg {pymtg.__version__} works, with torch {torch.__version__}")
