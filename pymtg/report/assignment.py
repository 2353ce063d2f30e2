"""The picture of a learned assignment: each task's branch probabilities over the epochs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymtg._counting import counted
from pymtg.errors import InvalidArgumentError
from pymtg.report.figures import (
    GROUP_COLOURS,
    INK,
    LEAST_HEIGHT,
    group_colour,
    integer_ticks,
    new_figure,
    plain_text,
    save_figure,
    strip_frame,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_PANELS", "assignment_figure", "save_assignment"]

MAX_PANELS = 16
_ROWS = 40  # strips in a block; more tasks go into blocks side by side
_MOST_NAMED = 240  # beyond, names would be unreadable: one block, groups marked at its side

Floats = npt.NDArray[np.float64]


def assignment_figure(
    history: npt.ArrayLike,
    names: Sequence[str],
    labels: Sequence[int],
    *,
    temperatures: Sequence[float] | None = None,
) -> Figure:
    """Draw the probabilities: stacked areas in a panel a task, or with more than 16 tasks a strip a task.

    Parameters
    ----------
    history
        ``[E + 1, T, K]`` probabilities of the K branches, before the first epoch and after each of the E epochs; 0
        for a branch from the epoch on that it was dropped.
    names, labels
        The T tasks' names and final branches. Tasks are drawn branch by branch, the surest first.
    temperatures
        At which Z was drawn, one an epoch; their first and last stand in the title.

    Raises
    ------
    InvalidArgumentError
        If the shapes do not fit, a probability is not in [0, 1], or a label is no branch.
    """
    values = _checked(history, names, labels)
    order = sorted(range(len(names)), key=lambda t: (labels[t], -values[-1, t, labels[t]], t))
    draw = _panels if len(names) <= MAX_PANELS else _strips
    figure = draw(values, order, names, labels)
    figure.suptitle(_title(values, order, temperatures), fontsize=9.5, color=INK)
    _add_key(figure, values.shape[2])
    return figure


def save_assignment(
    path: str | os.PathLike[str],
    history: npt.ArrayLike,
    names: Sequence[str],
    labels: Sequence[int],
    *,
    temperatures: Sequence[float] | None = None,
) -> Path:
    """Write :func:`assignment_figure` as a PNG file."""
    return save_figure(path, assignment_figure(history, names, labels, temperatures=temperatures))


def _checked(history: npt.ArrayLike, names: Sequence[str], labels: Sequence[int]) -> Floats:
    values = np.asarray(history, dtype=np.float64)
    if values.ndim != 3 or 0 in values.shape or not values.shape[1] == len(names) == len(labels):
        raise InvalidArgumentError(
            "history must be [epochs + 1, tasks, branches] with a name and a label per task; "
            f"got shape {values.shape}, {len(names)} names and {len(labels)} labels"
        )
    if not (np.all(values >= 0) and np.all(values <= 1 + 1e-6)):  # NaN fails both
        raise InvalidArgumentError(f"history must hold probabilities; got {values.min()} to {values.max()}")
    if min(labels) < 0 or max(labels) >= values.shape[2]:
        raise InvalidArgumentError(f"labels must be 0 to {values.shape[2] - 1}; got {list(labels)}")
    return values


def _panels(values: Floats, order: Sequence[int], names: Sequence[str], labels: Sequence[int]) -> Figure:
    columns = len(order) if len(order) <= 3 else 4
    rows = -(-len(order) // columns)
    figure = new_figure(max(5.2, 2.2 * columns + 0.5), 1.55 * rows + 1.25)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(order):
            axes.set_visible(False)
            continue
        t = order[place]
        _draw_areas(axes, values[:, t])
        axes.set_title(plain_text(names[t], 19), fontsize=9, loc="left", color=INK)
        colour = group_colour(labels[t])
        axes.set_title(f"group {labels[t]}", fontsize=8, loc="right", color=colour, fontweight="bold")
        # With an unfinished last row the panels above the gaps are the lowest of their columns.
        lowest = place + columns >= len(order)
        axes.tick_params(labelbottom=lowest)
        if lowest:
            axes.set_xlabel("epoch", fontsize=8.5, color=INK)
    figure.supylabel("probability of the branch", fontsize=9, color=INK)
    return figure


def _draw_areas(axes: Any, shares: Floats) -> None:
    """Stack one task's branches [E + 1, K], the first at the bottom."""
    drawn = len(shares)
    if drawn == 1:  # no epoch: an area needs two edges
        shares = np.repeat(shares, 2, axis=0)
    edges = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    epochs = np.arange(len(shares))
    for k in range(shares.shape[1]):
        axes.fill_between(epochs, edges[:, k], edges[:, k + 1], color=group_colour(k), alpha=0.85, linewidth=0)
    line = min(0.8, 6 / shares.shape[1])  # many thin areas must not vanish between their borders
    for k in range(1, shares.shape[1]):
        axes.plot(epochs, edges[:, k], color="white", linewidth=line)
    axes.set_xlim(0, epochs[-1])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    if drawn == 1:
        axes.set_xticks([0])
    else:
        integer_ticks(axes)
    strip_frame(axes)


def _strips(values: Floats, order: Sequence[int], names: Sequence[str], labels: Sequence[int]) -> Figure:
    named = len(order) <= _MOST_NAMED
    blocks = -(-len(order) // _ROWS) if named else 1
    rows = -(-len(order) // blocks)
    longest = max(len(plain_text(name, 22)) for name in names) if named else 14
    width = (1.9 if blocks > 1 else 5.0) + 0.08 * longest
    figure = new_figure(max(5.2, blocks * width + 0.6), 0.185 * rows + 1.5 if named else 9.0)
    grid = figure.subplots(1, blocks, squeeze=False)[0]
    colours = _strip_colours(values)
    for block, axes in enumerate(grid):
        tasks = order[block * rows : (block + 1) * rows]
        _draw_strips(axes, colours[tasks], rows)
        own = [labels[t] for t in tasks]
        if named:
            _name_rows(axes, [plain_text(names[t], 22) for t in tasks], own)
            _number_groups(axes, own)
        else:
            _name_groups(axes, own)
        for row in range(1, len(own)):
            if own[row] != own[row - 1]:
                axes.axhline(row - 0.5, color=INK, linewidth=1.0)
    return figure


def _strip_colours(values: Floats) -> npt.NDArray[np.float64]:
    """Return RGB [T, E + 1, 3]: the winning branch's colour, white where it is no likelier than any other."""
    from matplotlib.colors import to_rgb

    winner = values.argmax(axis=2)
    branches = values.shape[2]
    best = np.clip(values.max(axis=2), 0, 1)
    sure = np.ones_like(best) if branches == 1 else np.clip((best - 1 / branches) / (1 - 1 / branches), 0, 1)
    palette = np.array([to_rgb(group_colour(k)) for k in range(branches)])
    opacity = sure[..., None] ** 0.8  # the eye takes half a tint for less than half
    return np.asarray((palette[winner] * opacity + (1 - opacity)).transpose(1, 0, 2))


def _draw_strips(axes: Any, colours: npt.NDArray[np.float64], rows: int) -> None:
    shown, epochs = len(colours), colours.shape[1]
    axes.imshow(
        colours, aspect="auto", interpolation="nearest", extent=(-0.5, epochs - 0.5, shown - 0.5, -0.5), zorder=0
    )
    axes.set_ylim(max(rows, 1) - 0.5, -0.5)  # every block as high as the first, so that the strips line up
    if rows <= _ROWS:
        for row in range(1, shown):
            axes.axhline(row - 0.5, color="white", linewidth=0.8)
    integer_ticks(axes)
    axes.set_xlabel("epoch", fontsize=8.5, color=INK)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _name_rows(axes: Any, names: Sequence[str], labels: Sequence[int]) -> None:
    axes.set_yticks(range(len(names)), names)
    for text, label in zip(axes.get_yticklabels(), labels, strict=True):
        text.set_color(group_colour(label))
        text.set_fontsize(7.5)


def _number_groups(axes: Any, labels: Sequence[int]) -> None:
    """Write each group's number at the right of its strips: colours repeat after seven groups."""
    for k, middle, _ in _runs(labels):
        text = axes.text(1.015, middle, str(k), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        text.set_color(group_colour(k))
        text.set_fontweight("bold")


def _name_groups(axes: Any, labels: Sequence[int]) -> None:
    runs = [run for run in _runs(labels) if run[2] >= LEAST_HEIGHT * len(labels)]
    axes.set_yticks([middle for _, middle, _ in runs], [f"group {k}: {counted(size, 'task')}" for k, _, size in runs])
    for text, (k, _, _) in zip(axes.get_yticklabels(), runs, strict=True):
        text.set_color(group_colour(k))
        text.set_fontweight("bold")


def _runs(labels: Sequence[int]) -> list[tuple[int, float, int]]:
    """Return each group's number, the row in its middle and its size; `labels` stand in the order of the groups."""
    rows = {k: [row for row, label in enumerate(labels) if label == k] for k in dict.fromkeys(labels)}
    return [(k, float(np.mean(own)), len(own)) for k, own in rows.items()]


def _add_key(figure: Figure, branches: int) -> None:
    """Say which colour is which branch, where each has its own."""
    from matplotlib.patches import Patch

    if not 1 < branches <= len(GROUP_COLOURS):
        return
    handles = [Patch(color=group_colour(k), alpha=0.85, label=f"branch {k}") for k in range(branches)]
    columns = min(branches, int(figure.get_figwidth() / 1.05))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, handlelength=1)


def _title(values: Floats, order: Sequence[int], temperatures: Sequence[float] | None) -> str:
    epochs, tasks, branches = values.shape[0] - 1, values.shape[1], values.shape[2]
    title = (
        f"Assignment: {counted(tasks, 'task')}, {counted(branches, 'branch', 'branches')}, "
        f"{counted(epochs, 'epoch')}{_temperature(temperatures)}"
    )
    if len(order) <= MAX_PANELS:
        return title
    return f"{title}\na strip a task, in its likeliest branch's colour: the fuller, the surer"


def _temperature(temperatures: Sequence[float] | None) -> str:
    if temperatures is None or len(temperatures) == 0:
        return ""
    first, last = float(temperatures[0]), float(temperatures[-1])
    return f", temperature {first:.3g}" + (f" to {last:.3g}" if last != first else "")
