"""A linear head and its loss: the logits in chunks against the logits materialised, in time and memory, on the CPU.

``python benchmarks/linear_head.py`` writes ``results/linear_head.json``. Each shape is a process of its own. Times are
of forward and backward, all forms in turn, round after round, so that other work on the machine meets all alike; ratios
are medians over the rounds. Memory is how far a step raises the resident set above where it stood, features, weight,
targets and their gradients included where a form allocates them. Losses and gradients are compared first.
"""

from __future__ import annotations

import json
import statistics
import sys

from _fresh import in_fresh_process, save

SHAPES = [(256, 64, 100, 10), (1024, 32, 2000, 10), (256, 64, 5000, 2)]
FORMS = ("materialised", "chunks", "chunks, weighted")


def one(point: dict) -> dict:
    """Measure one shape's times, or the memory of one form of it, in this process."""
    import torch
    import torch.nn.functional as F
    from _measure import paired_ratio, paired_seconds, peak_mb

    from pymtg import TaskLayout
    from pymtg.functional import (
        linear_multitask_cross_entropy,
        weighted_linear_multitask_cross_entropy,
        weighted_multitask_cross_entropy,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, width, tasks, classes = point["rows"], point["width"], point["tasks"], point["classes"]
    layout = TaskLayout([f"t{t}" for t in range(tasks)], [classes] * tasks)
    features = torch.randn(rows, width, requires_grad=True)
    weight = (torch.randn(layout.num_logits, width) / width**0.5).requires_grad_()
    targets = torch.randint(classes, (rows, tasks), dtype=torch.uint8)

    def form(name: str, n: int = rows) -> tuple[torch.Tensor, ...]:
        x, y = features[:n], targets[:n]
        if name == "materialised":
            total = weighted_multitask_cross_entropy(F.linear(x, weight), y, layout)[0]
        elif name == "chunks":
            total = linear_multitask_cross_entropy(x, weight, None, y, layout).sum()
        else:
            total = weighted_linear_multitask_cross_entropy(x, weight, None, y, layout)[0]
        return torch.autograd.grad(total, (features, weight))

    if "form" in point:
        form(point["form"], 1)  # libraries are loaded
        return {"peak_mb": peak_mb(lambda: form(point["form"]))}
    expected = form("materialised")
    for name in FORMS[1:]:
        torch.testing.assert_close(form(name), expected, rtol=1e-4, atol=1e-5)
    seconds = paired_seconds({name: lambda name=name: form(name) for name in FORMS}, rounds=9, most_seconds=8)
    return {
        "logits_mb": rows * layout.num_logits * 4 / 1e6,
        "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "time_to_materialised": {name: paired_ratio(seconds["materialised"], times) for name, times in seconds.items()},
    }


def main() -> None:
    """Measure every shape."""
    if len(sys.argv) > 1:
        print(json.dumps(one(json.loads(sys.argv[1]))))
        return
    points = []
    for rows, width, tasks, classes in SHAPES:
        shape = {"rows": rows, "width": width, "tasks": tasks, "classes": classes}
        peaks = {name: in_fresh_process(__file__, shape | {"form": name})["peak_mb"] for name in FORMS}
        points.append(in_fresh_process(__file__, shape) | {"peak_mb": peaks})
    save("linear_head", "a linear head and its loss, forward and backward", points)


if __name__ == "__main__":
    main()
