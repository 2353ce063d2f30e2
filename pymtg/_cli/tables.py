"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from pymtg.metrics import Scores, best_value
from pymtg.report.content import GroupTable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pymtg._cli.backend_check import CheckedBackend
    from pymtg.trainers.comparison import Comparison, ComparisonView, Summary

__all__ = ["print_backends", "print_comparison", "print_groups", "print_pairs", "print_scores", "score"]

_MOST_MEMBERS = 12  # named in a line of the groups' table


def console() -> Console:
    """Return a console on stdout; a pipe gets plain text, wide enough that no table is cut."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=False)


def new_table(title: str, *columns: str, numbers: bool = True) -> Table:
    """Return a table whose first column is text and, with `numbers`, whose others stand to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and place else "left", overflow="fold")
    return table


def print_columns(title: str, names: Sequence[str], columns: Mapping[str, Sequence[Text]]) -> None:
    """Print a line a method; columns for which the terminal has no room go into tables below: no number breaks."""
    screen, left = console(), list(columns)
    unbounded = screen.options.update(max_width=10_000)
    while left:
        for count in range(len(left), 0, -1):
            table = new_table(title, "method", *left[:count])
            for row, name in enumerate(names):
                table.add_row(name, *(columns[column][row] for column in left[:count]))
            if screen.measure(table, options=unbounded).maximum <= screen.width:
                break
        screen.print(table)
        left = left[count:]


def score(value: float | None, digits: int = 4) -> str:
    """Return a score as text, a dash where it is not defined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """Print names and values."""
    from rich.text import Text

    table = new_table(title, "", "", numbers=False)
    table.show_header, table.box = False, None
    for key, value in pairs.items():
        table.add_row(key.replace("_", " "), Text(_as_text(value)))
    console().print(table, "")


def print_backends(checked: Sequence[CheckedBackend]) -> None:
    """Print what came of each backend, and which is the fastest on a device where that is not the one by default."""
    import torch
    from rich.text import Text

    from pymtg._backend import choose_backend

    table = new_table("against plain torch in float64", "backend", "device", "ms a step", "result", numbers=False)
    for one in checked:
        time = "-" if one.seconds is None else f"{1e3 * one.seconds:.3g}"
        table.add_row(one.backend, one.device, time, Text("agrees" if one.error is None else one.error))
    console().print(table)
    typer.echo("a step: loss, gradient and data map of 1,024 rows, 100 tasks of ten classes; the median of 21")
    for device in dict.fromkeys(one.device for one in checked):
        timed = {one.backend: one.seconds for one in checked if one.device == device and one.seconds is not None}
        best, now = min(timed, key=timed.__getitem__, default=None), choose_backend(None, torch.device(device))
        if best is not None and best != now:
            typer.echo(
                f"{device}: {best} is the fastest that agrees, {now} serves by default; "
                f"PYMTG_BACKEND={best} or pymtg.set_backend({best!r}) chooses it"
            )


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def print_scores(title: str, scores: Mapping[str, Scores]) -> None:
    """Print each method's mean over the tasks, the best of a column in bold."""
    from rich.text import Text

    columns = {}
    for figure in dict.fromkeys(figure for s in scores.values() for figure in s.mean):
        means = [s.mean[figure] for s in scores.values()]
        best = best_value(figure, means)
        columns[figure.replace("_", " ")] = [Text(score(mean), style="bold" if mean == best else "") for mean in means]
    print_columns(title, list(scores), columns)


def print_groups(groups: GroupTable, title: str = "groups", share: str = "membership") -> None:
    """Print each group's members, the strongest first, with their shares of the group."""
    from rich.text import Text

    table = new_table(title, "group", "tasks", f"members ({share})", numbers=False)
    for k in range(groups.num_groups):
        members = groups.members(k)
        table.add_row(str(k), str(len(members)), Text(_listed(groups, members)))
    console().print(table)


def _listed(groups: GroupTable, members: Sequence[int]) -> str:
    shown = ", ".join(f"{groups.names[t]} ({groups.strength(t):.2f})" for t in members[:_MOST_MEMBERS])
    return shown if len(members) <= _MOST_MEMBERS else f"{shown}, ... {len(members) - _MOST_MEMBERS} more"


def print_comparison(comparison: Comparison, metric: str) -> None:
    """Print a table per view: means over tasks and seeds with their standard errors, `metric` first, and the cost."""
    from rich.text import Text

    for view in comparison.views.values():
        known = next(iter(view.methods.values())).metrics
        metrics = [metric, *(name for name in known if name != metric)]
        rows = view.methods.items()
        columns = {
            m.replace("_", " "): [Text(_with_error(s.metrics[m]), _rank(view, n, m)) for n, s in rows] for m in metrics
        }
        columns["parameters"] = [Text(f"{summary.parameters.mean:,.0f}") for _, summary in rows]
        columns["epochs"] = [Text(f"{summary.epochs.mean:,.0f}") for _, summary in rows]
        columns["seconds"] = [Text(f"{summary.seconds.mean:.1f}") for _, summary in rows]
        title = f"{comparison.data}: {view.title}; {len(comparison.seeds)} seed(s)"
        print_columns(title, list(view.methods), columns)
    typer.echo("mean ± standard error over seeds; bold: the best, and what is within two standard errors of it")


def _with_error(summary: Summary) -> str:
    return score(summary.mean) if summary.stderr is None else f"{score(summary.mean)} ± {score(summary.stderr)}"


def _rank(view: ComparisonView, method: str, metric: str) -> str:
    """Return bold for the best method and for those that cannot be told from it."""
    best = view.best(metric)
    if best is None or not math.isfinite(view.methods[method].metrics[metric].mean):
        return ""
    return "bold" if method == best or view.difference(method, best, metric).tie else ""
