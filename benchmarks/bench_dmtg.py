"""DMTG's step behind its branches: K x T linear heads, their losses, the assignment; forward and backward.

``pytest benchmarks/bench_dmtg.py --benchmark-json=FILE``. Features ``[K, B, D]`` are given and get a gradient, as do
heads and theta; the Gumbel noise is given, so that all forms compute the same numbers, which is checked first. All
forms of one shape are timed in turn, round after round; ratios are medians of the rounds' ratios. The step and its
matrix products alone are timed once more without the others, which leave cold caches to whoever comes next.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
from _dmtg_peers import BatchedHeads, MatrixProducts, ReleasedHeads
from _measure import paired_ratio, paired_seconds

import pymtg
from pymtg import TaskLayout, _core
from pymtg.functional import assigned_cross_entropy

B, D = 256, 512
ROUNDS = int(os.environ.get("PYMTG_BENCH_ROUNDS", "41"))
SECONDS = float(os.environ.get("PYMTG_BENCH_SECONDS", "12"))


def ragged() -> list[int]:
    return torch.randint(2, 21, (100,), generator=torch.Generator().manual_seed(0)).tolist()


THREADS = sorted({1, torch.get_num_threads()})
SHAPES = {
    "3 x 9 x 1": (3, [1] * 9),
    "5 x 100 x 1": (5, [1] * 100),
    "5 x 100 x 2": (5, [2] * 100),
    "5 x 100 x 2-20": (5, ragged()),
}


def fused(layout):
    return lambda logits, targets, assignment: assigned_cross_entropy(logits, targets, assignment, layout)[0]


def steps_of(layout, num_branches):
    """All forms with the same weights on the same batch."""
    features = torch.randn(num_branches, B, D)
    weight, bias = (
        torch.randn(num_branches, D, layout.num_logits) / D**0.5,
        torch.zeros(num_branches, layout.num_logits),
    )
    targets = torch.stack([torch.randint(0, max(c, 2), (B,)) for c in layout.num_classes], 1)
    noise = -torch.empty(layout.num_tasks, num_branches).exponential_().log()
    given = (features, weight, bias, targets, noise)
    return {
        "pymtg": BatchedHeads(layout, *given, fused(layout)),
        "batched heads, loop over losses": BatchedHeads(layout, *given),
        "loop as released": ReleasedHeads(layout, *given),
        "matrix products": MatrixProducts(layout, *given),
    }


def check_answers(steps):
    reference = steps["pymtg"]
    total = reference()
    expected = reference.gradients()
    for name, step in steps.items():
        if name != "matrix products":
            torch.testing.assert_close(step(), total, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
            torch.testing.assert_close(step.gradients(), expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(params=THREADS)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_step(benchmark, shape, threads):
    benchmark.group = shape
    num_branches, classes = SHAPES[shape]
    torch.manual_seed(0)
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    steps = steps_of(layout, num_branches)
    check_answers(steps)
    products = {"pymtg": steps["pymtg"], "matrix products": steps.pop("matrix products")}
    seconds = paired_seconds(steps, ROUNDS, SECONDS)
    alone = paired_seconds(products, ROUNDS, SECONDS)
    benchmark.pedantic(steps["pymtg"], rounds=ROUNDS, iterations=1, warmup_rounds=3)
    ours = seconds["pymtg"]
    benchmark.extra_info.update(
        branches=num_branches,
        tasks=layout.num_tasks,
        logits=layout.num_logits,
        rows=B,
        features=D,
        threads=threads,
        torch=torch.__version__,
        pymtg=pymtg.__version__,
        instruction_set=_core.isa(),
        load_average=os.getloadavg()[0],
        median_seconds={name: statistics.median(values) for name, values in seconds.items()},
        speedup={name: paired_ratio(ours, values) for name, values in seconds.items() if name != "pymtg"},
        median_seconds_alone={name: statistics.median(values) for name, values in alone.items()},
        over_matrix_products=paired_ratio(alone["matrix products"], alone["pymtg"]),
    )
    shown = {key: benchmark.extra_info[key] for key in ("speedup", "over_matrix_products", "median_seconds_alone")}
    print(f"\n{shape}, {threads} threads: {shown}")
