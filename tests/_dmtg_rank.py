"""One rank of a distributed DMTG training, for test_dmtg_ranks.py: a process of its own."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pymtg import BranchedLoss, TaskLayout
from pymtg._ranks import leave
from pymtg.nets import BranchedNet, TaskAssignment

LAYOUT = TaskLayout(["a", "b", "x", "c"], [1, 3, 1, 2], kinds=["classification"] * 2 + ["regression", "classification"])
RANKS, ROWS, STEPS = 2, 12, 5


class Objective(nn.Module):
    """Network, assignment and loss in one module, so that one wrapper sees every parameter."""

    def __init__(self, sampling: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = BranchedNet(
            lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh()), 3, LAYOUT, features=5, trunk=nn.Linear(4, 6)
        )
        nn.init.normal_(self.net.heads.linear.weight)
        self.assignment = TaskAssignment(LAYOUT.num_tasks, 3, sampling=sampling, init="normal", seed=seed)
        self.loss = BranchedLoss(LAYOUT)
        self.shares: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor, first_row: int) -> torch.Tensor:
        """Return the loss of these rows, the first of which is row `first_row` of the whole batch."""
        shares = self.assignment.sample(0.9, rows=len(inputs), first_row=first_row)
        self.shares.append(shares.detach())
        return self.loss(self.net(inputs), targets, shares) + 0.1 * self.assignment.entropy()


def batch(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the whole batch of a step; all labels are there, so that the mean of the halves is that of the whole."""
    generator = torch.Generator().manual_seed(seed + step)
    inputs = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    columns = [
        torch.randn(ROWS, generator=generator, dtype=torch.float64)
        if kind == "regression"
        else torch.randint(max(2, classes), (ROWS,), generator=generator).double()
        for kind, classes in zip(LAYOUT.kinds, LAYOUT.num_classes, strict=True)
    ]
    return inputs, torch.stack(columns, 1)


def train(sampling: str, seed: int, rank: int | None) -> dict[str, object]:
    """Train on one rank's half of every batch, or on the whole batch where there is no rank."""
    objective = Objective(sampling, seed).double()
    if rank is not None:  # what a rank draws from the global generators is its own
        torch.manual_seed(1000 + rank)
    module = objective if rank is None else DistributedDataParallel(objective)
    adam = torch.optim.Adam(objective.parameters(), lr=0.05)
    rows = slice(None) if rank is None else slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
    gradients = []
    for step in range(STEPS):
        inputs, targets = (part[rows] for part in batch(seed, step))
        torch.rand(3 * (rank or 0) + 1)
        adam.zero_grad()
        module(inputs, targets, rows.start or 0).backward()
        gradients.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
        adam.step()
    return {"shares": objective.shares, "gradients": gradients, "state": objective.state_dict()}


def main(rank: int, meeting: str, seed: int, out: str, samplings: list[str]) -> None:
    """Train under every sampling and leave the record in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    try:
        torch.save({sampling: train(sampling, seed, rank) for sampling in samplings}, out)
    finally:
        leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:])
