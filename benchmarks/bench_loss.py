"""The fused loss, with and without recording, against what a user would write: forward and backward to logits.

``pytest benchmarks/bench_loss.py --benchmark-json=FILE``. All forms of one shape are timed in turn, round after round;
figures are medians, ratios are medians of the rounds' ratios. Every form's losses and gradients are checked first.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
from _loss_peers import ReleasedLoop, Vectorised, forms_for
from _measure import paired_ratio, paired_seconds, peak_mb

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout, _core

B, M = 256, 20_000
ROUNDS = int(os.environ.get("PYMTG_BENCH_ROUNDS", "41"))
SECONDS = float(os.environ.get("PYMTG_BENCH_SECONDS", "8"))


def ragged() -> list[int]:
    return torch.randint(2, 21, (1000,), generator=torch.Generator().manual_seed(0)).tolist()


SHAPES = {
    "15 x 1": [1] * 15,
    "100 x 1": [1] * 100,
    "100 x 10": [10] * 100,
    "1000 x 2": [2] * 1000,
    "1000 x 2-20": ragged(),
    "10000 x 2": [2] * 10_000,
}


class Step:
    """Forward and backward of one form on fixed logits, with fresh sample ids every call where it records."""

    def __init__(self, loss, logits, targets, ids) -> None:
        self.loss, self.targets, self.ids = loss, targets, ids
        self.logits = logits.clone().requires_grad_()
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        self.logits.grad = None
        ids = () if self.ids is None else (self.ids[self.calls % len(self.ids)],)
        self.calls += 1
        total = self.loss(self.logits, self.targets, *ids)
        total.backward()
        return total


def summed(form):
    return lambda logits, targets, ids=None: form(logits, targets, ids).sum()


def steps_of(layout, logits, targets, ids):
    steps = {
        "pymtg": Step(MultiTaskLoss(layout), logits, targets, None),
        "pymtg + map": Step(MultiTaskLoss(layout, DataMap(M, layout)), logits, targets, ids),
    }
    for form in forms_for(layout):
        steps[f"eager {form}"] = Step(summed(Vectorised(layout, M, form)), logits, targets, None)
        steps[f"eager {form} + map"] = Step(summed(Vectorised(layout, M, form)), logits, targets, ids)
        torch._dynamo.reset()
        compiled = torch.compile(summed(Vectorised(layout, M, form)), fullgraph=True, dynamic=False)
        steps[f"compile {form}"] = Step(compiled, logits, targets, None)
        compiled = torch.compile(summed(Vectorised(layout, M, form)), fullgraph=True, dynamic=False)
        steps[f"compile {form} + map"] = Step(compiled, logits, targets, ids)
    if layout.num_tasks <= 1000:
        steps["loop + map"] = Step(summed(ReleasedLoop(layout, M)), logits, targets, ids)
    return steps


def check_answers(steps):
    reference = steps["pymtg"]
    total = reference()
    for name, step in steps.items():
        torch.testing.assert_close(step(), total, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(step.logits.grad, reference.logits.grad, rtol=1e-3, atol=1e-6)


def best(medians, kind, recording):
    """Name of the fastest form of a kind."""
    names = [name for name in medians if name.startswith(kind) and name.endswith("+ map") == recording]
    return min(names, key=medians.__getitem__)


@pytest.mark.parametrize("shape", SHAPES)
def test_loss(benchmark, shape):
    benchmark.group = shape
    classes = SHAPES[shape]
    torch.manual_seed(0)
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    logits = torch.randn(B, layout.num_logits)
    targets = torch.stack([torch.randint(0, max(c, 2), (B,)) for c in classes], 1)
    ids = [torch.randperm(M)[:B] for _ in range(M // B)]
    steps = steps_of(layout, logits, targets, ids)
    check_answers(steps)
    peaks = {name: peak_mb(step) for name, step in steps.items()}
    seconds = paired_seconds(steps, ROUNDS, SECONDS)
    benchmark.pedantic(steps["pymtg + map"], rounds=ROUNDS, iterations=1, warmup_rounds=3)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = seconds["pymtg + map"]
    against = {
        "eager": best(medians, "eager", False),
        "eager + map": best(medians, "eager", True),
        "compile": best(medians, "compile", False),
        "compile + map": best(medians, "compile", True),
    }
    if "loop + map" in medians:
        against["loop + map"] = "loop + map"
    benchmark.extra_info.update(
        tasks=layout.num_tasks,
        logits=layout.num_logits,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        pymtg=pymtg.__version__,
        instruction_set=_core.isa(),
        load_average=os.getloadavg()[0],
        median_seconds=medians,
        peak_mb=peaks,
        best_forms=against,
        speedup_recording={kind: paired_ratio(ours, seconds[name]) for kind, name in against.items()},
        speedup_not_recording={kind: paired_ratio(seconds["pymtg"], seconds[name]) for kind, name in against.items()},
        recording_costs=paired_ratio(seconds["pymtg"], ours) - 1,
    )
    print(f"\n{shape}: {benchmark.extra_info['speedup_recording']}, {benchmark.extra_info['recording_costs']:+.0%}")
