"""Write the tables in README.md and docs/performance.md from the JSON files in benchmarks/results.

``python benchmarks/make_tables.py`` rewrites what stands between ``<!-- table: NAME -->`` and ``<!-- end -->``;
``--check`` only says, by its exit status, whether they are up to date.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

import _gpu_tables
from _costs import import_time_table, profile_cost_table
from _headline import headline_table
from _tables import MISSING, ROOT, load, machine, mb, ms, rows_to_markdown, times


def loss_table() -> str:
    """Speed of the loss against its peers: milliseconds and paired ratios."""
    document = load("loss.json")
    if document is None:
        return MISSING
    header = ["tasks x logits", "pymtg", "pymtg + map", "recording adds", "best eager + map", "best compile + map"]
    header += ["loop + map", "against eager", "against compile", "against the loop"]
    rows = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        medians, ratios, forms = info["median_seconds"], info["speedup_recording"], info["best_forms"]
        rows.append(
            [
                benchmark["group"],
                ms(medians["pymtg"]),
                ms(medians["pymtg + map"]),
                f"{info['recording_costs']:.0%}",
                ms(medians[forms["eager + map"]]),
                ms(medians[forms["compile + map"]]),
                ms(medians.get("loop + map")),
                times(ratios["eager + map"]),
                times(ratios["compile + map"]),
                times(ratios.get("loop + map")),
            ]
        )
    return rows_to_markdown(header, rows) + machine(document)


def loss_plain_table() -> str:
    """The loss without a map on both sides; with a map against the best eager form without one; peak memory."""
    document = load("loss.json")
    if document is None:
        return MISSING
    header = ["tasks x logits", "pymtg", "best eager", "best compile", "against eager", "against compile"]
    header += [
        "pymtg + map against eager without",
        "peak MB: pymtg + map",
        "eager + map",
        "compile + map",
        "loop + map",
    ]
    rows = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        medians, forms, peaks = info["median_seconds"], info["best_forms"], info["peak_mb"]
        plain = info["speedup_not_recording"]
        rows.append(
            [
                benchmark["group"],
                ms(medians["pymtg"]),
                ms(medians[forms["eager"]]),
                ms(medians[forms["compile"]]),
                times(plain["eager"]),
                times(plain["compile"]),
                times(info["speedup_recording"]["eager"]),
                mb(peaks["pymtg + map"]),
                mb(peaks[forms["eager + map"]]),
                mb(peaks[forms["compile + map"]]),
                mb(peaks.get("loop + map")),
            ]
        )
    return rows_to_markdown(header, rows) + machine(document)


def overhead_table() -> str:
    """Each layer of the loss on its own, microseconds."""
    document = load("overhead.json")
    if document is None:
        return MISSING
    shapes = {b["group"]: b["extra_info"]["median_seconds"] for b in document["benchmarks"]}
    names = list(next(iter(shapes.values())))
    rows = [[name, *(f"{medians[name] * 1e6:.3g}" for medians in shapes.values())] for name in names]
    return rows_to_markdown(["microseconds", *shapes], rows) + machine(document)


def integrations_table() -> str:
    """What recording adds to a step of somebody else's loop: processor time, medians of paired rounds."""
    document = load("integrations.json")
    if document is None:
        return MISSING
    header = ["loop", "tasks", "a step without, ms", "with, ms", "recording adds, ms", "middle half of the rounds", "%"]
    rows = []
    for point in document["points"]:
        low, high = point["adds_quartiles"]
        cells = [point["loop"], str(point["tasks"]), ms(point["without"]), ms(point["with"]), ms(point["adds"])]
        rows.append([*cells, f"{ms(low)} to {ms(high)}", f"{point['ratio'] - 1:+.0%}"])
    return rows_to_markdown(header, rows) + scale_machine(document)


def kmeans_table() -> str:
    """k-means end to end from the features against scikit-learn."""
    document = load("kmeans.json")
    if document is None:
        return MISSING
    header = [
        "points x features, K, starts",
        "pymtg s",
        "scikit-learn s",
        "speed-up",
        "inertia, ours over theirs, by seed",
    ]
    header += ["peak MB", "scikit-learn peak MB"]
    rows = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        rows.append(
            [
                f"{info['n']:,} x {info['dims']:,}, {info['clusters']}, {info['starts']}",
                f"{benchmark['stats']['median']:.3g}",
                f"{info['scikit_learn_seconds']:.3g}",
                times(info["scikit_learn_seconds"] / benchmark["stats"]["median"]),
                ", ".join(f"{ratio:.4f}" for ratio in info["inertia_ratios"]),
                mb(info["peak_mb"]),
                mb(info["scikit_learn_peak_mb"]),
            ]
        )
    return rows_to_markdown(header, rows) + machine(document)


def dmtg_table() -> str:
    """DMTG's step against the loops and against its matrix products: milliseconds and paired ratios."""
    document = load("dmtg.json")
    if document is None:
        return MISSING
    header = ["K x T x logits", "threads", "pymtg", "batched heads, loop over losses", "loop as released"]
    header += ["against batched heads", "against the loop", "alone: pymtg", "its matrix products", "ratio"]
    rows = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        medians, ratios, alone = info["median_seconds"], info["speedup"], info["median_seconds_alone"]
        batched, released = "batched heads, loop over losses", "loop as released"
        rows.append(
            [
                benchmark["group"],
                str(info["threads"]),
                *(ms(medians[name]) for name in ("pymtg", batched, released)),
                *(times(ratios[name]) for name in (batched, released)),
                *(ms(alone[name]) for name in ("pymtg", "matrix products")),
                times(info["over_matrix_products"]),
            ]
        )
    return rows_to_markdown(header, rows) + machine(document)


def branches_table() -> str:
    """A training step of K branches together and one by one: milliseconds and paired ratios."""
    document = load("branches.json")
    if document is None:
        return MISSING
    header = ["branch, batch", "together", "one by one", "inputs channels_last", "filters too", "against the best"]
    header += ["auto takes"]
    rows = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        medians = info["median_seconds"]
        forms = ["together", "one by one", "one by one, channels_last", "one by one, all channels_last"]
        chosen = "together" if info["chosen"] else "one by one"
        rows.append([benchmark["group"], *(ms(medians.get(form)) for form in forms), times(info["speedup"]), chosen])
    return rows_to_markdown(header, rows) + machine(document)


LABELS = {
    "stg_soft": "STG, soft",
    "stg_hard": "STG, hard",
    "stg_joint": "STG, joint start",
    "dmtg": "DMTG",
    "dmtg_warm": "DMTG, joint start",
    "dmtg_diagonal": "diagonal branches",
    "dmtg_random": "random branches",
    "mtl": "MTL",
    "ensemble": "ensemble of K MTL",
    "random_groups": "random groups",
    "stl": "STL",
}


def together_table() -> str:
    """K specialised networks trained together against one by one."""
    document = load("together.json")
    if document is None:
        return MISSING
    header = ["network, inputs", "tasks", "K", "rows", "together", "one by one", "ratio", "lowest to highest"]
    header += ["MB: together", "one by one", "auto takes"]
    rows = []
    for point in document["points"]:
        kind = "mlp" if "mlp" in point else "convnet"
        inputs, spent, peaks = point["inputs"], point["ms_a_step"], point["peak_mb"]
        shape = str(inputs[0]) if len(inputs) == 1 else " x ".join(map(str, [inputs[0], inputs[1], inputs[1]]))
        name = {"mlp": "MLP", "convnet": "ConvNet"}[kind] + " " + "-".join(map(str, point[kind]))
        low, high = point["ratios"][0], point["ratios"][-1]
        row = [f"{name}, {shape}", str(point["tasks"]), str(point["networks"]), str(point["batch"])]
        row += [f"{spent['together']:.3g}", f"{spent['one by one']:.3g}", times(point["ratio"])]
        row += [f"{low:.2f}-{high:.2f}", mb(peaks["together"]), mb(peaks["one by one"]), point["auto"]]
        rows.append(row)
    return rows_to_markdown(header, rows) + scale_machine(document)


def ranks_table() -> str:
    """Four specialised networks on two ranks."""
    document = load("specialise_ranks.json")
    if document is None:
        return MISSING
    names = list(document["points"][0]["seconds"])
    rows = []
    for point in document["points"]:
        spent = [f"{point['seconds'][name]:.2f} s ({times(point['speedup'][name])})" for name in names]
        rows.append([f"{'-'.join(map(str, point['hidden']))}, {point['batch']} rows", *spent])
    return rows_to_markdown(["hidden layers, batch", *names], rows) + scale_machine(document)


def quality_table(name: str, metric: str = "balanced_accuracy") -> Callable[[], str]:
    """Scores of a `pymtg compare` run: mean over tasks and seeds with its standard error, a column per view."""

    def build() -> str:
        document = load(f"{name}/comparison.json")
        if document is None:
            return MISSING
        views = document["views"]
        header = ["method", *(view["title"] for view in views.values())]
        header += ["parameters", "epochs in all", "seconds"]
        first = next(iter(views.values()))["methods"]
        rows = []
        for method in first:
            row = [LABELS.get(method, method)]
            for view in views.values():
                summary = view["methods"][method]["metrics"][metric]
                highest = max(other["metrics"][metric]["mean"] for other in view["methods"].values())
                text = f"{summary['mean']:.4f} ± {summary['stderr']:.4f}"
                row.append(f"**{text}**" if summary["mean"] == highest else text)
            row += [f"{first[method]['parameters']['mean']:,.0f}", f"{first[method]['epochs']['mean']:.0f}"]
            rows.append([*row, f"{first[method]['seconds']['mean']:.1f}"])
        seeds, groups = len(document["seeds"]), document["num_groups"]
        shown = {"roc_auc": "ROC AUC", "r2": "R²"}.get(metric, metric.replace("_", " ").capitalize())
        note = f"\n{shown}, K = {groups}, {seeds} seeds; bold is a column's highest. "
        note += "Parameters, epochs and seconds are those of the first column.\n"
        return rows_to_markdown(header, rows) + note

    return build


def difference_table(name: str, metric: str = "balanced_accuracy") -> Callable[[], str]:
    """STG less each baseline in the first view, paired by seed: mean, standard error, and their ratio."""

    def build() -> str:
        document = load(f"{name}/comparison.json")
        if document is None:
            return MISSING
        methods = next(iter(document["views"].values()))["methods"]
        baselines = ["mtl", "ensemble", "random_groups", "stl"]
        grouped = [m for m in ("stg_soft", "stg_joint", "dmtg", "dmtg_warm") if m in methods]
        rows = [[LABELS[m], *(difference(methods, m, other, metric) for other in baselines)] for m in grouped]
        return rows_to_markdown(["less", *(LABELS[other] for other in baselines)], rows)

    return build


def difference(methods: dict[str, Any], method: str, other: str, metric: str) -> str:
    """The paired difference of two methods over the seeds: mean, standard error, and their ratio."""
    pairs = zip(*(methods[m]["metrics"][metric]["values"] for m in (method, other)), strict=True)
    differences = [a - b for a, b in pairs]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    return f"{mean:+.4f} ± {error:.4f}" + (f" ({mean / error:+.1f})" if error else "")


SETS = {
    "digits": "balanced_accuracy",
    "yeast": "roc_auc",
    "scene": "roc_auc",
    "bibtex": "average_precision",
    "wq": "r2",
}


def dmtg_gains_table() -> str:
    """DMTG less MTL, random branches and STG on every set, in the views of best epochs and of equal totals."""
    header = [
        "set",
        "view",
        "DMTG less MTL",
        "joint start less MTL",
        "DMTG less random branches",
        "DMTG less STG, soft",
    ]
    rows = []
    for name, metric in SETS.items():
        document = load(f"compare-{name}/comparison.json")
        for view in [] if document is None else document["views"].values():
            methods = view["methods"]
            if "dmtg" not in methods:
                continue
            pairs = [("dmtg", "mtl"), ("dmtg_warm", "mtl"), ("dmtg", "dmtg_random"), ("dmtg", "stg_soft")]
            rows.append([name, view["title"], *(difference(methods, a, b, metric) for a, b in pairs)])
    return rows_to_markdown(header, rows) if rows else MISSING


def planted_table() -> str:
    """How often planted groups are found, by the width of a branch; and without what is ours."""
    document = load("planted.json")
    if document is None:
        return MISSING
    variants = document["variants"]
    rows = []
    for width, runs in variants["defaults"].items():
        index = statistics.mean(run["rand_index"] for run in runs)
        used = statistics.mean(run["branches_used"] for run in runs)
        exact = [sum(run["rand_index"] == 1 for run in variants[name][width]) for name in variants]
        rows.append([width, f"{exact[0]} of {len(runs)}", f"{index:.2f}", f"{used:.1f}", *map(str, exact[1:])])
    header = ["units of a branch", "found exactly", "mean adjusted Rand index", "branches used", *list(variants)[1:]]
    return rows_to_markdown(header, rows)


def options_table() -> str:
    """Test scores of DMTG with one option changed at a time: mean over seeds with its standard error."""
    document = load("dmtg-options.json")
    if document is None:
        return MISSING
    sets = document["sets"]
    rows = []
    for variant in next(iter(sets.values())):
        cells = []
        for runs in sets.values():
            scores = [run["score"] for run in runs[variant]]
            cells.append(f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores) / len(scores) ** 0.5:.4f}")
        rows.append([variant, *cells])
    names = {"balanced_accuracy": "balanced accuracy", "roc_auc": "ROC AUC", "r2": "R²"}
    header = ["changed", *(f"{name}, {names[document['settings']['metrics'][name]]}" for name in sets)]
    return rows_to_markdown(header, rows)


def scale_machine(document: dict[str, Any]) -> str:
    about = document["machine"]
    return (
        f"\n{about['cpu']}, {about['cores']} cores shared with other work, one thread, {about['instruction_set']}, "
        f"torch {about['torch']}; {document['date']}.\n"
    )


def scale_gram_table() -> str:
    """What grouping adds to the memory of the map, by where snapshots go."""
    document = load("scale_gram.json")
    if document is None:
        return MISSING
    kinds = ("gram", "disk", "memory")
    rows: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for point in document["points"]:
        rows.setdefault((point["samples"], point["epochs"]), {})[point["snapshots"]] = point
    header = ["samples M", "snapshots E", "the map, MB", *(f"{kind}: adds MB" for kind in kinds)]
    lines = [
        [f"{m:,}", str(e), mb(of["gram"]["map_mb"]), *(mb(of[kind]["rise_mb"]) for kind in kinds)]
        for (m, e), of in sorted(rows.items(), key=lambda row: (row[0][1] != 4, row[0]))
    ]
    return rows_to_markdown(header, lines) + f"\nT = {document['points'][0]['tasks']}." + scale_machine(document)


def scale_tasks_table() -> str:
    """Processor time and memory by the number of tasks, and how they grow."""
    document = load("scale_tasks.json")
    if document is None:
        return MISSING
    steps = {"loss": "loss ms", "map": "+ map ms", "gram": "Gram s", "cluster": "K = 10 s", "auto": "K of 2 to 10 s"}
    header = ["tasks T", *steps.values(), "the map MB", "Gram adds MB", "clustering adds MB", "planted groups found"]
    rows = []
    for point in document["points"]:
        times_ = [point[s]["cpu_seconds"] * (1e3 if s in ("loss", "map") else 1) for s in steps]
        adds = [point["gram"]["rise_mb"], max(point[s]["rise_mb"] for s in ("cluster", "auto"))]
        memory = [mb(v) for v in (point["map_mb"], *adds)]
        rows.append([f"{point['tasks']:,}", *(f"{v:.3g}" for v in times_), *memory])
        rows[-1].append(f"{point['planted_found']} of 10" if point["tasks"] > 10 else "")
    rows.append(["grows as", *(f"T^{document['growth'][s]:.2f}" for s in steps), "", "", "", ""])
    return rows_to_markdown(header, rows) + scale_machine(document)


def scale_real_table() -> str:
    """Real sets with many tasks: time, memory, quality."""
    document = load("scale_real.json")
    if document is None:
        return MISSING
    header = ["command", "tasks", "seconds", "processor s", "peak MB", "method", "average precision", "ROC AUC"]
    header += ["balanced accuracy"]
    rows = []
    for point in document["points"]:
        short = re.sub(r"--data mulan:\S+/|--(epochs|batch-size|seed|threads) \d+|--quiet", "", point["command"])
        first = [f"`{' '.join(short.split())}`", str(point["tasks"]), f"{point['seconds']:.0f}"]
        first += [f"{point['cpu_seconds']:.0f}", f"{point['peak_mb']:.0f}"]
        for method, scores in point["scores"].items():
            metrics = [f"{scores[m]:.4f}" for m in ("average_precision", "roc_auc", "balanced_accuracy")]
            rows.append([*first, method, *metrics])
            first = [""] * 5
    return rows_to_markdown(header, rows) + scale_machine(document)


def memory_table() -> str:
    """Resident set of runs of 200 epochs a stage."""
    document = load("memory.json")
    if document is None:
        return MISSING
    header = ["run", "stage", "epochs", "MB at epoch 10", "MB at the last", "MB at most", "kB an epoch from the 10th"]
    rows = []
    for method, stages in document["methods"].items():
        for stage, found in stages.items():
            figures = [found["mb_epoch_10"], found["mb_last"], found["mb_most"]]
            slope = f"{found['kb_an_epoch']:+.1f}"
            rows.append([method, stage, str(found["epochs"]), *(f"{value:.1f}" for value in figures), slope])
    return rows_to_markdown(header, rows) + f"\n{document['data']}, torch {document['torch']}.\n"


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline_table,
    "memory": memory_table,
    "profile-cost": profile_cost_table,
    "import-time": import_time_table,
    "loss": loss_table,
    "loss-plain": loss_plain_table,
    "overhead": overhead_table,
    "integrations": integrations_table,
    "kmeans": kmeans_table,
    "dmtg": dmtg_table,
    "branches": branches_table,
    "together": together_table,
    "specialise-ranks": ranks_table,
    "planted": planted_table,
    "dmtg-options": options_table,
    "scale-gram": scale_gram_table,
    "scale-tasks": scale_tasks_table,
    "scale-real": scale_real_table,
    "digits-differences": difference_table("compare-digits"),
    "dmtg-gains": dmtg_gains_table,
    **{name: quality_table(f"compare-{name}", metric) for name, metric in SETS.items()},
    **_gpu_tables.TABLES,
}


def filled(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}{match[4]}"

    return re.sub(r"(<!-- table: ([\w-]+) -->)\n(.*?)(<!-- end -->)", replace, text, flags=re.S)


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = path.read_text()
        after = filled(before)
        if before != after:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(after)
    print("out of date: " + ", ".join(stale) if stale else "up to date")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
