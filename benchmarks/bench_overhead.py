"""Where the time of a small step goes: each layer of the loss on its own, from the C++ call to forward and backward.

``pytest benchmarks/bench_overhead.py --benchmark-json=FILE``. Layers hold each other: a line minus the one above is
what the layer adds.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from _measure import paired_seconds

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout, _core, _cpp, _ops, functional

B, M = 256, 20_000


class Nothing(torch.autograd.Function):
    """What autograd.Function itself costs, forward and backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0]


def layers(layout):
    logits = torch.randn(B, layout.num_logits)
    leaf = logits.clone().requires_grad_()
    targets = torch.stack([torch.randint(0, max(c, 2), (B,)) for c in layout.num_classes], 1)
    ids = torch.randperm(M)[:B]
    data_map = DataMap(M, layout)
    plain, recording = MultiTaskLoss(layout), MultiTaskLoss(layout, data_map)
    losses, gradient = logits.new_empty(layout.num_tasks), torch.empty_like(logits)
    addresses = [_cpp._plan(layout), logits.data_ptr(), B, logits.stride(0), targets.data_ptr(), 2, targets.stride(0)]
    addresses += [-100, 0, losses.data_ptr(), gradient.data_ptr()]
    threads = torch.get_num_threads()
    without = (*addresses, 0, 0, 0, False, 0, 0, threads)
    with_map = (*addresses, ids.data_ptr(), *_cpp._addresses(data_map.state), threads)

    def step(loss, *extra):
        leaf.grad = None
        loss(leaf, targets, *extra).backward()

    def bare(arguments, *owners):  # the owners of the addresses live as long as the call
        return lambda: (_core.cross_entropy_forward_float(*arguments), owners)

    owners = (logits, targets, ids, data_map, losses, gradient, layout)

    def nothing():
        leaf.grad = None
        Nothing.apply(leaf).backward()

    op = _ops.multitask_cross_entropy
    return {
        "C++": bare(without, *owners),
        "C++ + map": bare(with_map, *owners),
        "backend": lambda: _cpp.cross_entropy(logits, targets, layout),
        "operator": lambda: op(logits, targets, None, None, None, None, None, layout.handle, -100, "cpp", True),
        "module, forward": lambda: plain(leaf, targets),
        "module, forward and backward": lambda: step(plain),
        "module, forward and backward + map": lambda: step(recording, ids),
        "checks alone": lambda: functional._check(leaf, targets, layout, -100, data_map, ids, None),
        "an autograd.Function that does nothing": nothing,
    }


@pytest.mark.parametrize("shape", ["15 x 1", "1000 x 2"])
def test_overhead(benchmark, shape):
    benchmark.group = shape
    tasks, classes = (int(part) for part in shape.split(" x "))
    torch.manual_seed(0)
    calls = layers(TaskLayout([f"t{t}" for t in range(tasks)], [classes] * tasks))
    seconds = paired_seconds(calls, 41, 4)
    benchmark.pedantic(calls["module, forward and backward"], rounds=41, iterations=1, warmup_rounds=3)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    benchmark.extra_info.update(
        median_seconds=medians, torch=torch.__version__, pymtg=pymtg.__version__, instruction_set=_core.isa()
    )
    assert medians["C++"] < medians["module, forward and backward"]
