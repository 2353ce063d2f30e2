"""K branches together against one by one: a whole training step of a `BranchedNet` with linear heads.

``pytest benchmarks/bench_branches.py --benchmark-json=FILE``. Forward, binary cross-entropy of all heads, backward
and a step of fused Adam. "One by one" is tried as it is, with inputs in channels_last, and with inputs and filters so;
the best counts. Losses, gradients and running statistics are compared first.
"""

from __future__ import annotations

import copy
import os
import statistics

import pytest
import torch
import torch.nn.functional as F
from _measure import paired_ratio, paired_seconds

import pymtg
from pymtg import TaskLayout, _core
from pymtg.nets import MLP, BranchedNet, ConvNet

K, T = 5, 9
ROUNDS = int(os.environ.get("PYMTG_BENCH_ROUNDS", "41"))
SECONDS = float(os.environ.get("PYMTG_BENCH_SECONDS", "12"))
LAYOUT = TaskLayout.binary([f"t{t}" for t in range(T)])

CASES = {
    "MLP 64-128-128, 32 rows": (MLP, 64, (128, 128), (32, 64)),
    "MLP 64-128-128, 256 rows": (MLP, 64, (128, 128), (256, 64)),
    "MLP 1836-128-128, 32 rows": (MLP, 1836, (128, 128), (32, 1836)),
    "MLP 1836-1024, 32 rows": (MLP, 1836, (1024,), (32, 1836)),
    "ConvNet 16-32, 32 images 8 x 8": (ConvNet, 1, (16, 32), (32, 1, 8, 8)),
    "ConvNet 32-64, 32 images 8 x 8": (ConvNet, 1, (32, 64), (32, 1, 8, 8)),
    "ConvNet 32-64, 256 images 8 x 8": (ConvNet, 1, (32, 64), (256, 1, 8, 8)),
    "ConvNet 8-16-32, 32 images 32 x 32": (ConvNet, 3, (8, 16, 32), (32, 3, 32, 32)),
    "ConvNet 16-32-64, 32 images 32 x 32": (ConvNet, 3, (16, 32, 64), (32, 3, 32, 32)),
    "ConvNet 32-64-128, 32 images 32 x 32": (ConvNet, 3, (32, 64, 128), (32, 3, 32, 32)),
}


class Step:
    """A whole training step of one form."""

    def __init__(self, net, inputs, targets) -> None:
        self.net, self.inputs, self.targets = net, inputs, targets
        self.optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def loss(self) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(self.net(self.inputs), self.targets)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def steps_of(kind, inputs, widths, shape):
    branches = [kind(inputs, widths) for _ in range(K)]
    x, targets = torch.randn(shape), torch.randint(0, 2, (K, shape[0], T)).float()
    alone = BranchedNet(copy.deepcopy(branches), K, LAYOUT, batched=False)
    together = BranchedNet(branches, K, LAYOUT, batched=True)
    together.heads.load_state_dict(alone.heads.state_dict())
    steps = {"together": Step(together, x, targets), "one by one": Step(alone, x, targets)}
    if len(shape) == 4:
        last = {"memory_format": torch.channels_last}
        steps["one by one, channels_last"] = Step(copy.deepcopy(alone), x.to(**last), targets)
        steps["one by one, all channels_last"] = Step(copy.deepcopy(alone).to(**last), x.to(**last), targets)
    return steps


def check_answers(steps):
    losses = {name: step.loss() for name, step in steps.items()}
    for loss in losses.values():
        loss.backward()
        torch.testing.assert_close(loss, losses["one by one"])
    truth = steps["one by one"].net
    for step in steps.values():
        torch.testing.assert_close(step.net.heads.linear.weight.grad, truth.heads.linear.weight.grad)
        for k in range(K):
            mine, theirs = step.net.branch_module(k), truth.branch_module(k)
            torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    together = copy.deepcopy(steps["together"].net)
    for parameter, own in zip(together.parameters(), steps["together"].net.parameters(), strict=True):
        parameter.data = own.grad
    for k in range(K):
        gradients = together.branch_module(k).parameters()
        for got, parameter in zip(gradients, truth.branches.each[k].parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_branches(benchmark, case):
    benchmark.group = case
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = steps_of(*CASES[case])
    check_answers(steps)
    seconds = paired_seconds(steps, ROUNDS, SECONDS / len(steps))
    benchmark.pedantic(steps["together"], rounds=5, iterations=1)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name != "together"), key=medians.__getitem__)
    kind, inputs, widths, _ = CASES[case]
    benchmark.extra_info.update(
        median_seconds=medians,
        best_form=best,
        speedup=paired_ratio(seconds["together"], seconds[best]),
        chosen=BranchedNet(lambda: kind(inputs, widths), K, LAYOUT).batched,
        branches=K,
        tasks=T,
        torch=torch.__version__,
        pymtg=pymtg.__version__,
        instruction_set=_core.isa(),
    )
