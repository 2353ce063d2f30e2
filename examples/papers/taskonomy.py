"""DMTG on Taskonomy-5, whose tasks are pictures: BranchedNet, BranchedLoss and TaskAssignment in a loop.

python examples/papers/taskonomy.py --config configs/dmtg-taskonomy5.toml --data DIR
"""

from __future__ import annotations

import argparse
import functools
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pymtg import BranchedLoss
from pymtg.data import TaskonomyViews, taskonomy
from pymtg.nets import BranchedNet, DenseDecoder, TaskAssignment, XceptionBranch, XceptionTrunk, count_parameters

Targets = dict[str, Tensor]


def masked_l1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return per image the mean of ``|output - target|`` over all values, 0 where the target is missing (NaN)."""
    missing = targets.isnan()
    return torch.where(missing, 0, outputs - torch.where(missing, 0, targets)).abs().mean(dim=(1, 2, 3))


def shifted_l1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over images of the least of nine losses: the output as it is, and shifted by a pixel.

    The released code's loss of depth and normals ("rotate"), which forgives maps that are a pixel off.
    """
    height, width = targets.shape[2:]
    inner = targets[:, :, 1:-1, 1:-1]
    shifts = [(y, x) for y in range(3) for x in range(3)]
    losses = [masked_l1(outputs[:, :, y : y + height - 2, x : x + width - 2], inner) for y, x in shifts]
    return torch.stack(losses).amin(0).mean()


def flipped(images: Tensor, targets: Targets, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """Turn half of the images left to right, with their targets; normals then point to the other side."""
    turn = torch.rand(len(images), generator=generator) < 0.5

    def flip(maps: Tensor) -> Tensor:
        rows = turn.view(-1, *[1] * (maps.ndim - 1))
        return torch.where(rows, maps.flip(-1), maps)

    found = {task: flip(maps) for task, maps in targets.items()}
    found["normal"][turn, 0] *= -1
    return flip(images), found


def network(config: dict[str, Any], layout: Any) -> BranchedNet:
    """Return K branches behind a trunk, with a decoder for every task on each."""
    trunk = XceptionTrunk(config["trunk"])
    return BranchedNet(
        XceptionBranch(trunk.out_features, config["branch"], config["branch_features"]),
        config["groups"],
        layout,
        trunk=trunk,
        head=functools.partial(DenseDecoder, widths=config["decoder"]),
        gradient_scaling=config["gradient_scaling"],
    )


def task_losses(config: dict[str, Any]) -> dict[str, Any]:
    """Return what BranchedLoss takes: "l1" and "dense_cross_entropy" leave out what is missing."""
    bumpy = shifted_l1 if config["rotate"] else "l1"
    flat = {"keypoints2d": "l1", "edge_texture": "l1", "segment_semantic": "dense_cross_entropy"}
    return {"depth_zbuffer": bumpy, "normal": bumpy, **flat}


def validated(net: BranchedNet, loss: BranchedLoss, assignment: TaskAssignment, data: Any, device: str) -> Tensor:
    """Return each task's mean loss [T] under its most probable branch."""
    net.eval(), assignment.eval()
    total, count = torch.zeros(len(loss.layout.names)), 0
    with torch.no_grad():
        for images, targets in data:
            chosen = assignment.sample()
            loss(net(images.to(device)), {task: t.to(device) for task, t in targets.items()}, chosen)
            assert loss.task_losses is not None
            total += (loss.task_losses * chosen).sum(1).cpu() * len(images)
            count += len(images)
    net.train(), assignment.train()
    return total / count


def train(config: dict[str, Any], options: argparse.Namespace) -> None:
    """Train, tell how it goes, and save the pruned network's weights."""
    torch.manual_seed(config["seed"])
    generator = torch.Generator().manual_seed(config["seed"])
    data = taskonomy(options.data, size=config["size"])

    def loader(part: TaskonomyViews, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(part, config["batch_size"], shuffle, num_workers=options.workers, generator=generator)

    net = network(config, data.layout).to(options.device)
    assignment = TaskAssignment(data.layout.num_tasks, config["groups"], seed=config["seed"]).to(options.device)
    loss = BranchedLoss(data.layout, task_losses(config))
    optimizer = torch.optim.Adam([*net.parameters(), *assignment.parameters()], config["lr"])
    plateau = {name: config[f"plateau_{name}"] for name in ("factor", "patience", "threshold", "min_lr")}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **plateau)
    print(f"{len(data.train)} views, {count_parameters(net):,} parameters")

    for epoch in range(1, (options.epochs or config["epochs"]) + 1):
        losses = []
        for images, targets in loader(data.train, shuffle=True):
            if config["flip"]:
                images, targets = flipped(images, targets, generator)
            outputs = net(images.to(options.device))
            on_device = {task: maps.to(options.device) for task, maps in targets.items()}
            total = loss(outputs, on_device, assignment.sample(config["temperature"]))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        mean = sum(losses) / len(losses)
        scheduler.step(mean)
        print(f"epoch {epoch}: loss {mean:.4f}, groups {assignment.labels().tolist()}")

    scored = data.val or data.train
    figures = validated(net, loss, assignment, loader(scored, shuffle=False), options.device)
    for task, figure in zip(data.layout.names, figures.tolist(), strict=True):
        print(f"{task}: {figure:.4f}")
    pruned = net.eval().prune(assignment.labels())
    print(f"pruned: {len(pruned.branches)} branches, {count_parameters(pruned):,} parameters")
    torch.save(pruned.state_dict(), options.out)


def read(path: Path) -> dict[str, Any]:
    """Return what the configuration file holds."""
    try:
        toml = importlib.import_module("tomllib")
    except ImportError:  # before Python 3.11
        toml = importlib.import_module("tomli")
    found: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8-sig"))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="configs/dmtg-taskonomy5.toml, or one like it")
    parser.add_argument("--data", required=True, help="where the buildings' folders are")
    parser.add_argument("--out", default="taskonomy.pt", help="file for the pruned network's weights")
    parser.add_argument("--epochs", type=int, help="instead of the configuration's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    chosen = parser.parse_args()
    train(read(chosen.config), chosen)
