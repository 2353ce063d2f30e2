"""The tables of the GPU's figures; ``*not measured*`` where nobody has run ``benchmarks/run_gpu.sh`` yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _tables import MISSING, load, mb, ms, rows_to_markdown, times


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def machine(document: dict[str, Any]) -> str:
    about = document["device"]
    name = f"dry run on the {about['name']}" if about["dry_run"] else about["name"]
    versions = [f"torch {about['torch']}"] + ([f"CUDA {about['cuda']}"] if "cuda" in about else [])
    return f"\n{', '.join([name, *versions])}; {document['date']}.\n"


def kernels_of(point: dict[str, Any]) -> list[str]:
    return [name for name in point["backends"] if name != "reference"]


def large_table() -> str:
    """Large shapes: bandwidth, what recording adds, peers."""
    document = load("gpu_loss.json")
    if document is None:
        return MISSING
    header = ["rows, tasks x logits", "backend", "ms", "+ map ms", "of a copy's bandwidth", "+ map"]
    header += ["recording adds", "best eager + map", "best compile + map", "loop + map"]
    rows = []
    for point in document["points"]:
        if point["shape"].startswith("small"):
            continue
        for backend in kernels_of(point):
            figures = point["backends"][backend]
            seconds = [point["seconds"][f"pymtg {backend}{suffix}"] for suffix in ("", " + map")]
            rows.append(
                [
                    f"{point['rows']:,}, {point['shape'].partition(': ')[2] or point['shape']}",
                    backend,
                    *map(ms, seconds),
                    percent(figures["bandwidth_of_copy_plain"]),
                    percent(figures["bandwidth_of_copy_map"]),
                    percent(figures["recording_adds"]),
                    *(times(figures["faster_than"].get(kind)) for kind in ("eager", "compile", "loop")),
                ]
            )
    return rows_to_markdown(header, rows) + machine(document)


def small_table() -> str:
    """Small shapes: launches, time under CUDA graphs, peers."""
    document = load("gpu_loss.json")
    if document is None:
        return MISSING
    header = ["rows, tasks x logits", "backend", "launches", "microseconds in a graph", "eager + map microseconds"]
    header += ["best eager + map", "best compile + map", "loop + map", "best + map, both in a graph"]
    rows = []
    for point in document["points"]:
        if not point["shape"].startswith("small"):
            continue
        for backend in kernels_of(point):
            figures = point["backends"][backend]
            launches = figures["launches"]
            us = [figures.get("graph_seconds"), point["seconds"][f"pymtg {backend} + map"]]
            rows.append(
                [
                    f"{point['rows']:,}, {point['shape'].partition(': ')[2]}",
                    backend,
                    "" if launches is None else str(sum(launches.values())),
                    *("" if value is None else f"{value * 1e6:.3g}" for value in us),
                    *(times(figures["faster_than"].get(kind)) for kind in ("eager", "compile", "loop", "graph")),
                ]
            )
    return rows_to_markdown(header, rows) + machine(document)


def tasks_table() -> str:
    """Step time over the number of tasks at a constant number of logits."""
    document = load("gpu_tasks.json")
    if document is None:
        return MISSING
    counts = list(document["points"][0]["seconds"]) if document["points"] else []
    header = ["backend", *(f"{int(count):,} tasks, ms" for count in counts), "slowest over fastest"]
    rows = [
        [
            p["backend"] + name,
            *(ms(p[f"seconds{key}"][count]) for count in counts),
            times(p[f"slowest_over_fastest{key}"]),
        ]
        for p in document["points"]
        for name, key in (("", "_without_map"), (" + map", ""))
    ]
    return rows_to_markdown(header, rows) + machine(document)


def backends_table() -> str:
    """The fastest backend by shape."""
    document = load("gpu_backends.json")
    if document is None:
        return MISSING
    names = list(dict.fromkeys(name for point in document["points"] for name in point["seconds"]))
    header = ["rows", "tasks x logits", "dtype", *(f"{name} ms" for name in names), "fastest"]
    rows = [
        [
            f"{p['rows']:,}",
            f"{p['tasks']} x {p['classes']}",
            p["dtype"].removeprefix("torch."),
            *(ms(p["seconds"].get(name)) for name in names),
            p["fastest"],
        ]
        for p in sorted(document["points"], key=lambda p: (p["dtype"], p["rows"], p["tasks"], p["classes"]))
    ]
    return rows_to_markdown(header, rows) + machine(document)


def linear_table() -> str:
    """Fused linear heads against materialised logits."""
    document = load("gpu_linear.json")
    if document is None:
        return MISSING
    forms = ("materialised", "losses", "weighted total")
    header = ["rows, features, tasks x logits", "dtype", "backend", *(f"{form} ms" for form in forms)]
    header += [*(f"{form}: time over materialised" for form in forms[1:]), *(f"{form}, peak MB" for form in forms)]
    rows = [
        [
            f"{p['rows']:,}, {p['features']:,}, {p['tasks']:,} x {p['classes']}",
            p["dtype"].removeprefix("torch."),
            p["backend"],
            *(ms(p["seconds"][form]) for form in forms),
            *(times(p["over_materialised"][form]) for form in forms[1:]),
            *(mb(p["peak_mb"][form]) for form in forms),
        ]
        for p in document["points"]
    ]
    return rows_to_markdown(header, rows) + machine(document)


def training_table() -> str:
    """A training step with maps and without."""
    document = load("gpu_training.json")
    if document is None:
        return MISSING
    columns = ("without", "with maps", "without, graph", "with maps, graph")
    header = ["backend", "without maps, ms", "with maps, ms", "maps add"]
    header += ["without, in a graph", "with maps, in a graph", "maps add"]
    rows = []
    for p in document["points"]:
        eager, eager_maps, graph, graph_maps = (ms(p["seconds"].get(column)) for column in columns)
        added = ["" if p.get(key) is None else f"{p[key]:+.1%}" for key in ("maps_add", "maps_add_in_graph")]
        rows.append([p["backend"], eager, eager_maps, added[0], graph, graph_maps, added[1]])
    return rows_to_markdown(header, rows) + machine(document)


TABLES: dict[str, Callable[[], str]] = {
    "gpu-loss-large": large_table,
    "gpu-loss-small": small_table,
    "gpu-tasks": tasks_table,
    "gpu-backends": backends_table,
    "gpu-linear": linear_table,
    "gpu-training": training_table,
}
