"""The example for Taskonomy trains on files in the set's form, and its losses are the released code's."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _papers import write_taskonomy

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "papers" / "taskonomy.py"
CONFIG = ROOT / "configs" / "dmtg-taskonomy5.toml"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT), run_name="taskonomy")


def smaller(text, **changes):
    """The configuration with other values, whose keys must be there."""
    lines = text.splitlines()
    for key, value in changes.items():
        at = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
        assert len(at) == 1, key
        lines[at[0]] = f"{key} = {value}"
    return "\n".join(lines)


def test_it_trains_by_its_configuration(tmp_path, monkeypatch, capsys):
    write_taskonomy(tmp_path / "data", {"hanson": 4, "darden": 2}, 16)
    sizes = {"size": 16, "batch_size": 2, "trunk": [4, 4, 6], "branch": [6], "branch_features": 6, "decoder": [5, 4]}
    own = smaller(CONFIG.read_text(), **sizes, lr=0.01)
    (tmp_path / "own.toml").write_text(own)
    monkeypatch.chdir(tmp_path)
    words = ["--config", "own.toml", "--data", "data", "--epochs", "6", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["taskonomy.py", *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    losses = [float(line.split()[3].rstrip(",")) for line in printed.splitlines() if line.startswith("epoch")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    for task in ("depth_zbuffer", "normal", "segment_semantic", "keypoints2d", "edge_texture"):
        assert f"\n{task}: " in printed
    assert "nan" not in printed
    assert torch.load(tmp_path / "taskonomy.pt")


def released_rotate_loss(output, target, mask):
    """The least of nine shifts by a pixel, written out for one image at a time."""
    losses = []
    for image, aim, there in zip(output, target, mask, strict=True):
        found = []
        for y in (0, 1, 2):
            for x in (0, 1, 2):
                part = image[:, y : y + aim.shape[1] - 2, x : x + aim.shape[2] - 2]
                difference = F.l1_loss(part, aim[:, 1:-1, 1:-1], reduction="none") * there[:, 1:-1, 1:-1]
                found.append(difference.mean())
        losses.append(min(found))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_shifted_loss_is_the_released_one(script, generator, channels):
    output = torch.randn(3, channels, 6, 7, generator=generator)
    target = torch.randn(3, channels, 6, 7, generator=generator)
    mask = torch.rand(3, 1, 6, 7, generator=generator) < 0.7
    missing = torch.where(mask, target, float("nan"))
    assert torch.allclose(script["shifted_l1"](output, missing), released_rotate_loss(output, target, mask))
    leaf = output.requires_grad_()
    script["shifted_l1"](leaf, missing).backward()
    assert torch.isfinite(leaf.grad).all()


def test_a_map_that_is_a_pixel_off_costs_nothing(script, generator):
    target = torch.randn(1, 1, 8, 8, generator=generator)
    assert script["shifted_l1"](target.roll(1, 3), target) == 0
    assert script["shifted_l1"](target.roll(2, 3), target) > 0


def test_flips_turn_images_targets_and_normals(script, generator):
    images = torch.randn(40, 3, 4, 4, generator=generator)
    targets = {
        "normal": torch.randn(40, 3, 4, 4, generator=generator),
        "segment_semantic": torch.arange(16).view(4, 4).repeat(40, 1, 1),
    }
    turned, found = script["flipped"](images, {task: t.clone() for task, t in targets.items()}, generator)
    rows = [not torch.equal(a, b) for a, b in zip(turned, images, strict=True)]
    assert 0 < sum(rows) < 40
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    for i, was in enumerate(rows):
        assert torch.equal(turned[i], images[i].flip(-1) if was else images[i])
        assert torch.equal(found["normal"][i], targets["normal"][i].flip(-1) * sign if was else targets["normal"][i])
        aim = targets["segment_semantic"][i]
        assert torch.equal(found["segment_semantic"][i], aim.flip(-1) if was else aim)
