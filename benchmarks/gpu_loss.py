"""The fused loss on a GPU: forward, backward to the logits and recording, against what a user would write.

All forms of a shape record; they are timed in turn in one run, beside a copy within the memory of the device. Every
form's losses and gradients are checked first. ``python benchmarks/gpu_loss.py [--dry-run]`` writes its JSON file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _gpu import Run, medians, ratio
from _loss_peers import ReleasedLoop, Vectorised, forms_for

from pymtg import DataMap, MultiTaskLoss, TaskLayout

# name: rows, classes, dtype
Shape = tuple[int, list[int], torch.dtype]
MOST_LOOPED = 1_000  # tasks that the loop as released is run on


def shapes(dry: bool) -> dict[str, Shape]:
    """Small shapes (everything stays in the cache) and large ones, far beyond it; first what is asked for most."""
    wide = torch.float32
    if dry:
        return {
            "small: 5 x 1": (16, [1] * 5, wide),
            "large: 4 x 3": (32, [3] * 4, wide),
            "ragged": (8, [2, 5, 3], wide),
        }
    ragged = torch.randint(2, 21, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    return {
        "small: 15 x 1": (256, [1] * 15, wide),
        "small: 100 x 1": (256, [1] * 100, wide),
        "large: 1000 x 10": (8_192, [10] * 1000, wide),
        "large: 1000 x 2": (32_768, [2] * 1000, wide),
        "large: 1000 x 1": (65_536, [1] * 1000, wide),
        "large: 100 x 100": (8_192, [100] * 100, wide),
        "small: 100 x 10": (256, [10] * 100, wide),
        "large: 1000 x 2-20": (8_192, ragged, wide),
        "large: 1000 x 10, bfloat16": (8_192, [10] * 1000, torch.bfloat16),
    }


class Step:
    """Forward and backward of one form on fixed logits; sample ids, where given, change from call to call."""

    def __init__(self, loss: Callable[..., Any], logits: torch.Tensor, targets: torch.Tensor, ids: Any) -> None:
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


def summed(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda logits, targets, ids=None: form(logits, targets, ids).float().sum()


def steps_of(run: Run, layout: TaskLayout, logits: torch.Tensor, targets: torch.Tensor, ids: Any) -> dict[str, Step]:
    """Return every form's step; when warming up those that something is compiled for."""
    samples = len(ids) * len(logits)
    steps = {}
    for backend in run.kernels() if run.warm else run.backends():
        data_map = DataMap(samples, layout, device=run.device)
        steps[f"pymtg {backend}"] = Step(MultiTaskLoss(layout, backend=backend), logits, targets, None)
        steps[f"pymtg {backend} + map"] = Step(MultiTaskLoss(layout, data_map, backend=backend), logits, targets, ids)
    with run.device:
        for form in forms_for(layout):
            if not run.warm:
                steps[f"eager {form}"] = Step(summed(Vectorised(layout, samples, form)), logits, targets, ids)
            compiled = run.compiled(summed(Vectorised(layout, samples, form)))
            steps[f"compile {form}"] = Step(compiled, logits, targets, ids)
        if layout.num_tasks <= MOST_LOOPED and samples * layout.num_tasks < 2**29 and not run.warm:
            steps["loop"] = Step(summed(ReleasedLoop(layout, samples)), logits, targets, ids)
    return steps


def check_answers(run: Run, shape: str, steps: dict[str, Step]) -> None:
    """Hold every form to plain torch; one that fails or is off is noted, and not timed."""
    expected = next(step for name, step in steps.items() if name.startswith("pymtg reference"))
    total = expected()
    half = expected.logits.dtype != torch.float32
    rtol = 3e-2 if half else 1e-3
    for name, step in list(steps.items()):
        try:
            torch.testing.assert_close(step(), total, rtol=rtol, atol=1e-4)
            torch.testing.assert_close(step.logits.grad, expected.logits.grad, rtol=rtol, atol=3e-5 if half else 1e-6)
        except Exception as error:  # a form that does not compile must not keep the others from being measured
            run.failed(f"{shape}, {name}", error)
            del steps[name]


def graphs_of(run: Run, shape: str, steps: dict[str, Step]) -> dict[str, Callable[[], object]]:
    """Return the steps as CUDA graphs, but for those that read the device or are very long."""
    graphs: dict[str, Callable[[], object]] = {}
    for name, step in steps.items():
        if "reference" in name or name == "loop":
            continue
        try:
            graphs[f"{name}, graph"] = run.graphed(step)
        except Exception as error:
            run.failed(f"{shape}, {name}, graph", error)
    return graphs


def counted_bytes(logits: torch.Tensor, targets: torch.Tensor, recording: bool) -> int:
    """Logits, targets and the map's words read once, gradient and words written once: what a step has to move."""
    cells = targets.numel()
    return 2 * logits.nbytes + targets.nbytes + (2 * 8 * cells + 8 * len(targets) if recording else 0)


def best(found: dict[str, float], kind: str) -> str | None:
    """Name of the fastest form of a kind; of kind "graph", of all that are not ours."""
    names = [name for name in found if name.startswith(kind) and not name.endswith("graph")]
    if kind == "graph":
        names = [name for name in found if name.endswith("graph") and not name.startswith("pymtg")]
    return min(names, key=found.__getitem__) if names else None


def measure(run: Run, name: str, shape: Shape) -> dict[str, Any]:
    rows, classes, dtype = shape
    generator = torch.Generator().manual_seed(0)
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    logits = torch.randn(rows, layout.num_logits, generator=generator).to(run.device, dtype)
    labels = torch.tensor(classes).clamp(min=2)
    targets = (torch.rand(rows, len(classes), generator=generator) * labels).long().to(run.device)
    ids = [order.to(run.device) for order in torch.randperm(2 * rows, generator=generator).split(rows)]
    steps = steps_of(run, layout, logits, targets, ids)
    if run.warm:
        run.paired(dict(steps))
        return {}
    check_answers(run, name, steps)
    graphs = graphs_of(run, name, steps) if name.startswith("small") else {}
    seconds = run.paired({**steps, **graphs, "copy": run.copies()}, most_seconds=10)
    found = medians(seconds)
    point: dict[str, Any] = {"shape": name, "rows": rows, "tasks": len(classes), "logits": layout.num_logits}
    point |= {"dtype": str(dtype), "seconds": found, "copy_bytes_per_second": run.copied_bytes / found["copy"]}
    point["backends"] = {
        b: of_backend(run, b, seconds, steps, logits, targets)
        for b in run.backends()
        if f"pymtg {b}" in steps and f"pymtg {b} + map" in steps
    }
    return point


def of_backend(
    run: Run,
    backend: str,
    seconds: dict[str, list[float]],
    steps: dict[str, Step],
    logits: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, Any]:
    """Return the figures of one backend: shares of the copy's bandwidth, what recording adds, ratios, launches."""
    plain, recording, found = f"pymtg {backend}", f"pymtg {backend} + map", medians(seconds)
    figures: dict[str, Any] = {"recording_adds": ratio(seconds[plain], seconds[recording]) - 1}
    for key, form in (("plain", plain), ("map", recording)):
        moved = counted_bytes(logits, targets, form == recording)
        copy_share = [moved / s / (run.copied_bytes / c) for s, c in zip(seconds[form], seconds["copy"], strict=False)]
        figures[f"bandwidth_of_copy_{key}"] = sorted(copy_share)[len(copy_share) // 2]
    peers = {kind: best(found, kind) for kind in ("eager", "compile", "loop")}
    figures["faster_than"] = {kind: ratio(seconds[recording], seconds[p]) for kind, p in peers.items() if p}
    figures["best_forms"] = peers
    figures["launches"] = run.launches(steps[recording])
    graph, theirs = f"{recording}, graph", best(found, "graph")
    if graph in found:
        figures["graph_seconds"] = found[graph]
        if theirs is not None:
            figures["faster_than"]["graph"] = ratio(seconds[graph], seconds[theirs])
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    run = Run("loss", __doc__ or "", arguments)
    for name, shape in run.mine(list(shapes(run.dry).items())):
        run.attempt(name, lambda name=name, shape=shape: measure(run, name, shape))
    return run.status()


if __name__ == "__main__":
    sys.exit(main())
