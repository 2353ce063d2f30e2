"""The picture of a data map: one panel a task, mean against variability, coloured by correctness."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pymtg._counting import counted
from pymtg.errors import InvalidArgumentError
from pymtg.report.content import GroupTable
from pymtg.report.figures import (
    FAINT,
    INK,
    add_colour_bar,
    group_colour,
    new_figure,
    plain_text,
    save_figure,
    strip_frame,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pymtg.groups import TaskGroups

__all__ = ["MAX_PANELS", "choose_panels", "data_map_figure", "save_data_map"]

MAX_PANELS = 36
_COLOURS = "plasma_r"
_MAX_POINTS = 4000  # a panel is 240 pixels wide: more points than this only cost time


class MapLike(Protocol):
    """What the picture needs of a :class:`pymtg.DataMap`."""

    @property
    def mean(self) -> torch.Tensor:
        """Mean gold probability [M, T]."""

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of the gold probability [M, T]."""

    @property
    def correctness(self) -> torch.Tensor:
        """Share of the epochs in which the argmax was the gold class [M, T]."""

    @property
    def count(self) -> torch.Tensor:
        """Number of observations [M, T]; what has none is not drawn."""

    @property
    def layout(self) -> Any:
        """The tasks; only ``layout.names`` is read."""


def choose_panels(groups: GroupTable | None, num_tasks: int, most: int = MAX_PANELS) -> list[int]:
    """Return the tasks to draw, in order: all, or `most` that represent every group in proportion to its size.

    Within a group they are spread evenly from its strongest to its weakest member. Without groups the tasks keep their
    order.
    """
    order = groups.order() if groups is not None else list(range(num_tasks))
    if num_tasks <= most:
        return order
    if groups is None:
        return [order[i] for i in _spread(num_tasks, most)]
    members = [m for m in (groups.members(k) for k in range(groups.num_groups)) if m]
    quotas = _quotas([len(m) for m in members], most)
    return [m[i] for m, quota in zip(members, quotas, strict=True) for i in _spread(len(m), quota)]


def _spread(length: int, count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, length - 1, count)] if count != 1 else [0]


def _quotas(sizes: Sequence[int], total: int) -> list[int]:
    """Share `total` panels out one by one to whoever is furthest below its share; each gets one while they last."""
    quotas = [0] * len(sizes)
    for _ in range(total):
        open_ = [k for k in range(len(sizes)) if quotas[k] < sizes[k]]
        neediest = min(open_, key=lambda k: (quotas[k] > 0, quotas[k] / sizes[k], -sizes[k], k))
        quotas[neediest] += 1
    return quotas


def data_map_figure(
    data_map: MapLike, groups: GroupTable | TaskGroups | None = None, *, most: int = MAX_PANELS
) -> Figure:
    """Draw the map: mean (y) against standard deviation (x), one panel a task, coloured by correctness.

    Where there are more than `most` tasks or 4,000 samples a panel, a selection is drawn and the title says so.
    """
    names = list(data_map.layout.names)
    groups = None if groups is None else GroupTable.of(groups)
    if groups is not None and list(groups.names) != names:
        raise InvalidArgumentError("groups must be those of the data map's tasks, in its order")
    tasks = choose_panels(groups, len(names), most)
    # One plane after the other, and only the panels' columns of it: together they are larger than the map itself.
    mean, std, correct = (_array(getattr(data_map, plane)[:, tasks]) for plane in ("mean", "std", "correctness"))
    mean[_array(data_map.count[:, tasks]) == 0] = np.nan  # a map holds 0 where nothing was observed
    columns = _num_columns(len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(max(4.8, 2.1 * columns + 1.0), 2.0 * rows + 1.1)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    sample = _drawn_samples(mean.shape[0])
    widest = max(0.05, float(np.nanmax(std, initial=0.0)))
    for place, axes in enumerate(grid.flat):
        if place >= len(tasks):
            axes.set_visible(False)
            continue
        t = tasks[place]
        _draw_panel(axes, std[sample, place], mean[sample, place], correct[sample, place])
        axes.set_xlim(-0.03 * widest, 1.05 * widest)
        _title_panel(axes, names[t], groups, t)
        # With an unfinished last row the panels above the gaps are the lowest of their columns.
        axes.tick_params(labelbottom=place + columns >= len(tasks))
    figure.supxlabel("variability (standard deviation of the gold probability)", fontsize=9, color=INK)
    figure.supylabel("mean gold probability", fontsize=9, color=INK)
    figure.suptitle(_title(len(names), len(tasks), mean.shape[0], len(sample), groups), fontsize=9.5, color=INK)
    add_colour_bar(figure, grid, _COLOURS, "correctness (share of epochs)", fraction=0.04, aspect=30, pad=0.015)
    return figure


def save_data_map(
    path: str | os.PathLike[str],
    data_map: MapLike,
    groups: GroupTable | TaskGroups | None = None,
    *,
    most: int = MAX_PANELS,
) -> Path:
    """Write :func:`data_map_figure` as a PNG file."""
    return save_figure(path, data_map_figure(data_map, groups, most=most))


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).numpy()


def _num_columns(panels: int) -> int:
    if panels <= 3:
        return max(1, panels)
    return min(6, int(np.ceil(np.sqrt(panels * 1.3))))  # a little wider than high, as screens are


def _drawn_samples(num_samples: int) -> np.ndarray:
    """Pick the samples to draw, in random order: whoever comes last in the data must not cover the others."""
    order = np.random.default_rng(0).permutation(num_samples)
    return order[:_MAX_POINTS]


def _draw_panel(axes: Any, std: np.ndarray, mean: np.ndarray, correct: np.ndarray) -> None:
    # A sample without an observation of this task is NaN; scatter would draw it at the edge in some versions.
    known = np.isfinite(std) & np.isfinite(mean) & np.isfinite(correct)
    size = float(np.clip(2500 / max(1, int(known.sum())), 2.5, 16))
    axes.scatter(
        std[known], mean[known], c=correct[known], s=size, cmap=_COLOURS, vmin=0, vmax=1, linewidths=0, alpha=0.75
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_axisbelow(True)
    axes.grid(color=FAINT, linewidth=0.5)
    strip_frame(axes)


def _title_panel(axes: Any, name: str, groups: GroupTable | None, task: int) -> None:
    if groups is None:
        axes.set_title(plain_text(name, 24), fontsize=9, loc="left", color=INK)
        return
    group = int(groups.labels[task])
    label = plain_text(name, 15)
    axes.set_title(label, fontsize=9, loc="left", color=INK)
    axes.set_title(f"group {group}", fontsize=8, loc="right", color=group_colour(group), fontweight="bold")


def _title(num_tasks: int, drawn: int, num_samples: int, sampled: int, groups: GroupTable | None) -> str:
    tasks = counted(num_tasks, "task") if drawn == num_tasks else f"{drawn} of {counted(num_tasks, 'task')}"
    if drawn < num_tasks and groups is not None:
        tasks += ", every group in proportion to its size"
    samples = counted(num_samples, "sample")
    if sampled != num_samples:
        samples = f"{sampled:,} of {samples} drawn"
    return f"Data map: {tasks}; {samples}"
