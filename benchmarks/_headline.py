"""README's table: a few figures of each kind, each from the results behind a longer table of docs/performance.md."""

from __future__ import annotations

from typing import Any

from _tables import load, mb, ms, rows_to_markdown, times


def headline_table() -> str:
    """One row for each thing that was measured; rows whose results are not there are left out."""
    rows = [row for part in (_loss(), _kmeans(), _dmtg(), _digits(), _integrations(), _delicious()) for row in part]
    return rows_to_markdown(["what", "pymtg", "beside it"], rows) + _machine()


def _loss() -> list[list[str]]:
    document = load("loss.json")
    rows = []
    for benchmark in [] if document is None else document["benchmarks"]:
        if benchmark["group"] not in ("100 x 1", "1000 x 2"):
            continue
        info = benchmark["extra_info"]
        seconds, ratios = info["median_seconds"], info["speedup_recording"]
        others = [
            f"{name} {ms(seconds[form])} ms ({times(ratios[of])})"
            for name, form, of in (
                ("best eager torch", info["best_forms"]["eager + map"], "eager + map"),
                ("best torch.compile", info["best_forms"]["compile + map"], "compile + map"),
                ("a loop over tasks", "loop + map", "loop + map"),
            )
        ]
        tasks, logits = benchmark["group"].split(" x ")
        what = f"a step of the loss with its data map, {tasks} tasks of {logits} logit{'s' * (logits != '1')}"
        rows.append([what, f"{ms(seconds['pymtg + map'])} ms", ", ".join(others)])
    return rows


def _kmeans() -> list[list[str]]:
    document = load("kmeans.json")
    rows = []
    for benchmark in [] if document is None else document["benchmarks"]:
        info = benchmark["extra_info"]
        if info["n"] != 100:
            continue
        ours, theirs = benchmark["stats"]["median"], info["scikit_learn_seconds"]
        what = f"k-means of {info['n']} tasks with {info['dims']:,} features, K = {info['clusters']}"
        rows.append([what, f"{ours:.2g} s", f"scikit-learn {theirs:.3g} s ({times(theirs / ours)})"])
    return rows


def _dmtg() -> list[list[str]]:
    document = load("dmtg.json")
    rows = []
    for benchmark in [] if document is None else document["benchmarks"]:
        info = benchmark["extra_info"]
        if benchmark["group"] != "5 x 100 x 1" or info["threads"] != 1:
            continue
        seconds = info["median_seconds"]
        others = [
            f"{shown} {ms(seconds[name])} ms ({times(info['speedup'][name])})"
            for shown, name in (
                ("batched heads", "batched heads, loop over losses"),
                ("a loop as released", "loop as released"),
            )
        ]
        what = "DMTG's step behind the branches, 5 branches and 100 tasks"
        rows.append([what, f"{ms(seconds['pymtg'])} ms", ", ".join(others)])
    return rows


def _digits() -> list[list[str]]:
    document = load("compare-digits/comparison.json")
    if document is None:
        return []
    rows = []
    for key, what in (("fixed", "the same epochs a network"), ("equal", "the same epochs in all")):
        methods = document["views"][key]["methods"]
        others = ", ".join(f"{name} {_score(methods[m])}" for m, name in _BESIDE.items())
        ours = f"STG {_score(methods['stg_joint'])}, DMTG {_score(methods['dmtg_warm'])}"
        rows.append([f"balanced accuracy on 15 tasks of the digits, joint start, {what}", ours, others])
    return rows


_BESIDE = {
    "mtl": "one network",
    "ensemble": "an ensemble of three",
    "random_groups": "random groups",
    "stl": "a network a task",
}


def _score(method: dict[str, Any]) -> str:
    return f"{method['metrics']['balanced_accuracy']['mean']:.3f}"


def _integrations() -> list[list[str]]:
    document = load("integrations.json")
    if document is None:
        return []
    points = [point for point in document["points"] if point["tasks"] == 15 and "Mixin" not in point["loop"]]
    names = [point["loop"].partition(":")[0] for point in points]
    adds = ", ".join(f"{name} +{ms(point['adds'])} ms" for name, point in zip(names, points, strict=True))
    without = ", ".join(f"{ms(point['without'])} ms" for point in points)
    what = f"recording 15 tasks in a step of another loop ({document['machine']['cpu']})"
    return [[what, adds, f"the steps without: {without}"]]


def _delicious() -> list[list[str]]:
    document = load("scale_real.json")
    if document is None:
        return []
    point = next(point for point in document["points"] if "stg --data mulan:NAME/delicious" in point["command"])
    cost = f"{point['cpu_seconds']:.0f} s of one processor, {mb(point['peak_mb'])} MB"
    return [[f"`pymtg stg` on delicious, {point['tasks']} tasks, from files to report", cost, ""]]


def _machine() -> str:
    document = load("loss.json")
    return "" if document is None else f"\n{document['machine_info']['cpu']['brand_raw']}.\n"
