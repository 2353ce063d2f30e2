"""The picture of the memberships: tasks x groups, ordered by group."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pymtg._counting import counted
from pymtg.report.content import GroupTable
from pymtg.report.figures import INK, LEAST_HEIGHT, add_colour_bar, group_colour, new_figure, plain_text, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pymtg.groups import TaskGroups

__all__ = ["memberships_figure", "save_memberships"]

_COLOURS = "Blues"
_ROWS = 40  # rows in a block; more tasks go into blocks side by side
_MOST_NAMED = 240  # beyond, names would be unreadable: one strip, groups marked at its side
_MOST_NUMBERED = 12  # columns that leave room for a number in each cell


def memberships_figure(groups: GroupTable | TaskGroups) -> Figure:
    """Draw the memberships as a heat map, ordered by group and then by strength, with numbers where they fit."""
    groups = GroupTable.of(groups)
    order = groups.order()
    named = len(order) <= _MOST_NAMED
    blocks = -(-len(order) // _ROWS) if named else 1
    rows = -(-len(order) // blocks)
    cell = 0.5 if groups.num_groups <= _MOST_NUMBERED else 0.22
    longest = max(len(plain_text(name)) for name in groups.names) if named else 4
    width = blocks * (cell * groups.num_groups + 0.085 * longest + 0.5) + 1.0
    figure = new_figure(max(4.0, width), max(2.2, 0.22 * rows + 1.2) if named else 9.0)
    grid = figure.subplots(1, blocks, squeeze=False)[0]
    for block, axes in enumerate(grid):
        tasks = order[block * rows : (block + 1) * rows]
        _draw_block(axes, groups, tasks, rows, named)
    figure.suptitle(_title(groups, named), fontsize=9.5, color=INK)
    add_colour_bar(figure, grid, _COLOURS, "membership", fraction=0.05, aspect=25, pad=0.02)
    return figure


def save_memberships(path: str | os.PathLike[str], groups: GroupTable | TaskGroups) -> Path:
    """Write :func:`memberships_figure` as a PNG file."""
    return save_figure(path, memberships_figure(groups))


def _draw_block(axes: Any, groups: GroupTable, tasks: list[int], rows: int, named: bool) -> None:
    values = np.asarray(groups.memberships, dtype=float)[tasks]
    axes.imshow(values, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_ylim(max(rows, 1) - 0.5, -0.5)  # every block as high as the first, so that the rows line up
    labels = [int(groups.labels[t]) for t in tasks]
    step = 1 if groups.num_groups <= 25 else 5
    axes.set_xticks(range(0, groups.num_groups, step), [str(k) for k in range(0, groups.num_groups, step)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    if named:
        axes.set_yticks(range(len(tasks)), [plain_text(groups.names[t]) for t in tasks])
        for text, label in zip(axes.get_yticklabels(), labels, strict=True):
            text.set_color(group_colour(label))
    else:
        high = [k for k in set(labels) if labels.count(k) >= LEAST_HEIGHT * len(labels)]
        middles = {k: float(np.mean([r for r, label in enumerate(labels) if label == k])) for k in high}
        axes.set_yticks(list(middles.values()), [f"group {k}" for k in middles])
    for row in range(1, len(labels)):
        if labels[row] != labels[row - 1]:
            axes.axhline(row - 0.5, color=INK, linewidth=1.0)
    if named and groups.num_groups <= _MOST_NUMBERED:
        _number_cells(axes, values)


def _number_cells(axes: Any, values: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}" if np.isfinite(value) else "—"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if value > 0.55 else INK)


def _title(groups: GroupTable, named: bool) -> str:
    title = f"Memberships: {counted(len(groups.names), 'task')} in {counted(groups.num_groups, 'group')}"
    return title if named else f"{title}\n(ordered by group; names are in groups.json)"
