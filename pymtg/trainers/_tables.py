"""Comparisons as tables, in plain text and in Markdown."""

from __future__ import annotations

from pymtg.errors import InvalidArgumentError
from pymtg.trainers.comparison import Comparison, ComparisonView, Summary

__all__ = ["comparison_markdown", "comparison_text"]

LABELS = {
    "stg_soft": "STG, soft",
    "stg_hard": "STG, hard",
    "stg_joint": "STG, joint start",
    "dmtg": "DMTG",
    "dmtg_warm": "DMTG, joint start",
    "dmtg_diagonal": "diagonal branches",
    "dmtg_random": "random branches",
    "mtl": "MTL",
    "ensemble": "MTL ensemble",
    "random_groups": "random groups",
    "stl": "STL",
}
_NOTE = "mean over tasks, and over seeds ± standard error; * best, ~ within two standard errors of it"


def comparison_text(comparison: Comparison, metric: str | None) -> str:
    """Return one aligned table per view."""
    blocks = [f"{comparison.data}, K = {comparison.num_groups}, {len(comparison.seeds)} seed(s): {_NOTE}"]
    for view in comparison.views.values():
        rows = _rows(view, metric)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "  ".join("-" * w for w in widths)
        blocks.append("\n".join([view.title, lines[0], rule, *lines[1:]]))
    return "\n\n".join(blocks) + "\n"


def comparison_markdown(comparison: Comparison, metric: str | None) -> str:
    """Return one Markdown table per view."""
    blocks = [f"{comparison.data}, K = {comparison.num_groups}, {len(comparison.seeds)} seed(s): {_escaped(_NOTE)}."]
    for view in comparison.views.values():
        head, *rows = _rows(view, metric)
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        table = "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)
        blocks.append(f"**{view.title}**\n\n{table}")
    return "\n\n".join(blocks) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("*", "\\*").replace("~", "\\~")


def _rows(view: ComparisonView, metric: str | None) -> list[list[str]]:
    first = next(iter(view.methods.values()))
    if metric is None:
        metric = "balanced_accuracy" if "balanced_accuracy" in first.metrics else next(iter(first.metrics))
    if metric not in first.metrics:
        raise InvalidArgumentError(f"metric must be one of {list(first.metrics)}; got {metric!r}")
    metrics = [metric, *(name for name in first.metrics if name != metric)]
    rows = [["method", *(name.replace("_", " ") for name in metrics), "parameters", "epochs", "seconds"]]
    for name, summary in view.methods.items():
        cells = [_figure(summary.metrics[m]) + _mark(view, name, m) for m in metrics]
        cost = [f"{summary.parameters.mean:,.0f}", f"{summary.epochs.mean:,.0f}", f"{summary.seconds.mean:.2f}"]
        rows.append([LABELS.get(name, name), *cells, *cost])
    return rows


def _figure(summary: Summary) -> str:
    return f"{summary.mean:.4f}" if summary.stderr is None else f"{summary.mean:.4f} ± {summary.stderr:.4f}"


def _mark(view: ComparisonView, method: str, metric: str) -> str:
    """Say whether a figure is the view's best, or cannot be told from it."""
    best, mean = view.best(metric), view.methods[method].metrics[metric].mean
    if best is None or mean != mean:
        return "  "
    if method == best:
        return " *"
    return " ~" if view.difference(method, best, metric).tie else "  "
