"""What data maps cost in a training step of a network of ResNet-18's size on 32 x 32 images with 100 tasks.

The same step (forward, loss, backward, SGD), with maps and without, in turn, launched one by one and as a CUDA graph:
``results/gpu_training.json``. Launched one by one such a step may wait for the host, which hides or exaggerates what
maps cost the device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _gpu import Run, medians, ratio
from torch import Tensor, nn

from pymtg import DataMap, MultiTaskLoss, TaskLayout


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int, outputs: int) -> nn.Module:
    """ResNet-18 in its form for 32 x 32 images: a first convolution of 3 x 3 and no pooling."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    channels = width
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def step_of(run: Run, recording: bool, backend: str, rows: int, width: int, tasks: int) -> Callable[[], None]:
    torch.manual_seed(0)
    layout = TaskLayout.binary([f"t{t}" for t in range(tasks)])
    data_map = DataMap(50_000, layout, device=run.device) if recording else None
    loss = MultiTaskLoss(layout, data_map, backend=backend)
    net = resnet18(width, tasks).to(run.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(rows, 3, 32, 32, device=run.device).to(memory_format=torch.channels_last)
    targets = torch.randint(2, (rows, tasks), device=run.device)
    ids = torch.randperm(50_000, device=run.device)[:rows]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(run.device.type, torch.bfloat16):
            logits = net(images)
        (loss(logits, targets, ids) if recording else loss(logits, targets)).backward()
        optimizer.step()

    return step


def measure(run: Run, backend: str) -> dict[str, Any]:
    rows, width, tasks = (2, 4, 3) if run.dry else (256, 64, 100)
    steps: dict[str, Callable[[], object]] = {
        "without": step_of(run, False, backend, rows, width, tasks),
        "with maps": step_of(run, True, backend, rows, width, tasks),
    }
    if backend != "reference":  # which reads the device
        steps |= {f"{name}, graph": run.graphed(step) for name, step in steps.items()}
    seconds = run.paired(steps, rounds=3 * run.rounds)
    point: dict[str, Any] = {"backend": backend, "rows": rows, "tasks": tasks, "width": width}
    point |= {"seconds": medians(seconds), "maps_add": ratio(seconds["without"], seconds["with maps"]) - 1}
    if "without, graph" in seconds:
        point["maps_add_in_graph"] = ratio(seconds["without, graph"], seconds["with maps, graph"]) - 1
    return point


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("training", __doc__ or "", arguments)
    for backend in run.backends():
        run.attempt(backend, lambda backend=backend: measure(run, backend))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
