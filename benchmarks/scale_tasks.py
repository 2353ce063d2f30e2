"""Loss, data map, Gram matrix and clustering with 10 to 10,000 tasks: time, memory, and how both grow with T.

``python benchmarks/scale_tasks.py`` writes ``results/scale_tasks.json`` and ``docs/images/scale_tasks.png``; ``--plot``
draws the picture again. Each T is a process of its own, with one thread: B = 256 rows, M = 2,000 samples, binary tasks
of ten kinds. Growth is the slope of a line through log time against log T, over the three largest T.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from _fresh import RESULTS, in_fresh_process, measured, save

TASKS = (10, 100, 1_000, 10_000)
SAMPLES, ROWS, GROUPS = 2_000, 256, 10
STEPS = {
    "loss": "loss and gradient, a batch",
    "map": "recording the map, a batch",
    "gram": "Gram matrix",
    "cluster": "clustering, K = 10",
    "auto": "clustering, K of 2 to 10",
}


def one(point: dict) -> dict:
    """Measure one number of tasks, in this process."""
    import torch

    from pymtg import DataMap, MultiTaskLoss, TaskLayout, cluster_tasks

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tasks = point["tasks"]
    layout = TaskLayout.binary([f"t{t}" for t in range(tasks)])
    kinds = torch.arange(tasks) % 10
    targets = (torch.rand(SAMPLES, 10, generator=generator) < 0.5).long()
    difficulty = 3 * torch.rand(SAMPLES, 10, generator=generator)

    def batch() -> tuple:
        ids = torch.randint(SAMPLES, (ROWS,), generator=generator)
        y = targets[ids][:, kinds]
        noise = torch.randn(ROWS, tasks, generator=generator)
        return ((2 * y - 1) * difficulty[ids][:, kinds] + noise).requires_grad_(), y, ids

    def step(loss: MultiTaskLoss) -> float:
        logits, y, ids = batch()
        start = time.process_time()
        loss(logits, y, ids).backward()
        return time.process_time() - start

    def many(loss: MultiTaskLoss) -> float:
        step(loss)
        count = 200 if tasks <= 1000 else 40
        return statistics.median(step(loss) for _ in range(count))

    plain, plain_figures = measured(lambda: many(MultiTaskLoss(layout)))
    data_map = DataMap(SAMPLES, layout, snapshots="gram")
    recording, map_figures = measured(lambda: many(MultiTaskLoss(layout, data_map)))
    cluster_tasks(torch.eye(5, dtype=torch.float64), 2, random_state=0)  # libraries are loaded
    _, gram_figures = measured(lambda: data_map.snapshot(0))
    _, cluster_figures = measured(lambda: cluster_tasks(data_map, GROUPS, random_state=0))
    groups, auto_figures = measured(lambda: cluster_tasks(data_map, "auto", random_state=0))
    found = [set(group) for group in groups.groups]
    planted = [{f"t{t}" for t in range(k, tasks, 10)} for k in range(10)]
    return {
        "samples": SAMPLES,
        "rows": ROWS,
        "map_mb": data_map.nbytes / 1e6,
        "loss": plain_figures | {"cpu_seconds": plain},
        "map": map_figures | {"cpu_seconds": max(recording - plain, 0.0)},
        "gram": gram_figures,
        "cluster": cluster_figures,
        "auto": auto_figures,
        "num_groups": groups.num_groups,
        "planted_found": sum(group in planted for group in found),
    }


def growth(points: list[dict], step: str, figure: str) -> float:
    """Return the slope of log `figure` against log T over the three largest T."""
    import numpy as np

    last = sorted(points, key=lambda p: p["tasks"])[-3:]
    return float(np.polyfit(*np.log([[p["tasks"] for p in last], [max(p[step][figure], 1e-9) for p in last]]), 1)[0])


def plot(points: list[dict]) -> None:
    """Draw time and memory against T."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    colours = dict(zip(STEPS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B4E9B"), strict=True))
    tasks = [p["tasks"] for p in points]
    for step, name in STEPS.items():
        slope = growth(points, step, "cpu_seconds")
        label = f"{name}: T^{slope:.1f}"
        time_axes.plot(tasks, [p[step]["cpu_seconds"] for p in points], "o-", ms=4, color=colours[step], label=label)
    memory = {
        "the map itself, M = 2,000": ([p["map_mb"] for p in points], "#555555"),
        "Gram matrix": ([p["gram"]["rise_mb"] for p in points], colours["gram"]),
        # what the first clustering took and gave back is there for the second one
        "clustering": ([max(p["cluster"]["rise_mb"], p["auto"]["rise_mb"]) for p in points], colours["auto"]),
    }
    for name, (values, colour) in memory.items():
        memory_axes.plot(tasks, [max(v, 0.1) for v in values], "o-", ms=4, color=colour, label=name)
    for axes, title in ((time_axes, "processor seconds, one thread"), (memory_axes, "MB, rise of the resident set")):
        axes.set(xscale="log", yscale="log", xlabel="tasks T")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color="#DDDDDD", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7.5, frameon=False)
    figure.savefig(Path(RESULTS).parent.parent / "docs" / "images" / "scale_tasks.png", dpi=110)


def main() -> None:
    """Measure every T, or draw what was measured."""
    if sys.argv[1:] == ["--plot"]:
        plot(json.loads((RESULTS / "scale_tasks.json").read_text())["points"])
        return
    if len(sys.argv) > 1:
        print(json.dumps(one(json.loads(sys.argv[1]))))
        return
    points = [in_fresh_process(__file__, {"tasks": tasks}) for tasks in TASKS]
    slopes = {step: growth(points, step, "cpu_seconds") for step in STEPS}
    save("scale_tasks", "loss, data map, Gram matrix and clustering by the number of tasks", points, growth=slopes)
    plot(points)


if __name__ == "__main__":
    main()
