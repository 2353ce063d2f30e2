"""The HTML page: one file that holds its pictures and its style and asks the network for nothing."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pymtg._counting import counted
from pymtg.metrics import LOWER_IS_BETTER, Scores, best_value
from pymtg.report import curves
from pymtg.report.content import GroupTable, Report
from pymtg.report.figures import group_colour, png
from pymtg.report.files import save_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render_html", "save_html"]

_FIGURE_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "r2": "R²",
    "rmse": "RMSE",
}
_MOST_COLUMNS = 12  # groups that get a column each in the table of memberships; with more, a task's strongest three


def render_html(report: Report) -> str:
    """Return the page; every name and setting in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pymtg.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        counted=counted, number=_number, figure_name=_figure_name, duration=duration, group_colour=group_colour
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        figures=_figures(report.scores),
        best={
            figure: best_value(figure, (s.mean.get(figure, math.nan) for s in report.scores.values()))
            for figure in _figures(report.scores)
        },
        per_task=_per_task(report),
        group_rows=_group_rows(report.groups),
        membership_rows=_membership_rows(report.groups),
        wide=report.groups.num_groups > _MOST_COLUMNS,
        pictures=_pictures(report),
        wording=report.wording,
        method_notes={m: note for m, note in report.wording.methods.items() if m in report.scores},
    )


def save_html(path: str | os.PathLike[str], report: Report) -> Path:
    """Write :func:`render_html` to a file, atomically."""
    return save_text(path, render_html(report))


def duration(seconds: float) -> str:
    """Return a duration as people write it: ``0.42 s``, ``12.3 s``, ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: object, digits: int | None = 3) -> str:
    """Return a number as text: with so many decimals, or (None) as short as five significant digits allow."""
    if isinstance(value, (bool, str)) or value is None:
        return "—" if value is None else str(value)
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        return "—"
    return f"{number:.5g}" if digits is None else f"{number:.{digits}f}"


def _figure_name(figure: str) -> str:
    return _FIGURE_NAMES.get(figure, figure.replace("_", " "))


def _figures(scores: Mapping[str, Scores]) -> list[str]:
    present = dict.fromkeys(figure for s in scores.values() for figure in s.mean)
    return [f for f in _FIGURE_NAMES if f in present] + [f for f in present if f not in _FIGURE_NAMES]


def _per_task(report: Report) -> list[dict[str, Any]]:
    """One table a figure: rows of a task's score by method, the best one marked, and the gain over the baseline."""
    tables = []
    methods = list(report.scores)
    first = next((m for m in methods if m != report.baseline), None)
    compared = first if report.baseline in report.scores else None
    for figure in _figures(report.scores):
        rows = []
        for t in report.groups.order():
            name = report.groups.names[t]
            values = [report.scores[m].tasks.get(name, {}).get(figure, math.nan) for m in methods]
            best = best_value(figure, values)
            gain = values[methods.index(compared)] - values[methods.index(report.baseline)] if compared else math.nan
            rows.append(
                {"name": name, "group": int(report.groups.labels[t]), "values": values, "best": best, "gain": gain}
            )
        tables.append(
            {"figure": figure, "rows": rows, "compared": compared, "sign": -1 if figure in LOWER_IS_BETTER else 1}
        )
    return tables


def _group_rows(groups: GroupTable) -> list[dict[str, Any]]:
    return [
        {"group": k, "members": [(groups.names[t], groups.strength(t)) for t in groups.members(k)]}
        for k in range(groups.num_groups)
    ]


def _membership_rows(groups: GroupTable) -> list[dict[str, Any]]:
    rows = []
    for t in groups.order():
        values = [float(v) for v in groups.memberships[t]]
        top = sorted(range(len(values)), key=lambda k: -values[k])[:3]
        rows.append({"name": groups.names[t], "group": int(groups.labels[t]), "values": values, "top": top})
    return rows


def _pictures(report: Report) -> dict[str, str | None]:
    """Return the data URIs of the pictures, None for one that there is not."""
    files = {"data_map": report.data_map, "memberships": report.memberships, "assignment": report.assignment}
    pictures: dict[str, str | None] = dict.fromkeys((*files, "curves", "silhouettes"))
    for name, path in files.items():
        if path is not None:
            pictures[name] = _data_uri(Path(path).read_bytes())
    if report.curves:
        pictures["curves"] = _figure_uri(curves.learning_curves_figure(report.curves))
    if report.groups.silhouettes:
        pictures["silhouettes"] = _figure_uri(
            curves.silhouette_figure(report.groups.silhouettes, report.groups.num_groups)
        )
    return pictures


def _figure_uri(figure: Figure) -> str:
    return _data_uri(png(figure))


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
