"""Learning curves and the silhouette curve, small, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pymtg.report.content import Curve
from pymtg.report.figures import FAINT, INK, group_colour, integer_ticks, new_figure, plain_text, strip_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curves_figure", "silhouette_figure"]

_MOST_IN_A_ROW = 3
_MOST_LABELLED = 10  # curves in a panel that a legend can still name


def learning_curves_figure(curves: Sequence[Curve]) -> Figure:
    """Draw one panel for each ``curve.panel``, in order of appearance."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    columns = min(len(panels), 2 if len(panels) == 4 else _MOST_IN_A_ROW)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.3 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        shown = [curve for curve in curves if curve.panel == panel]
        for place, curve in enumerate(shown):
            epochs = range(curve.first, curve.first + len(curve.values))
            marker = "o" if len(curve.values) == 1 else None
            axes.plot(epochs, curve.values, color=_line_colour(place), label=curve.label, linewidth=1.5, marker=marker)
        axes.set_title(plain_text(panel, 48), fontsize=9.5, loc="left", color=INK)
        axes.set_xlabel("epoch", fontsize=8.5, color=INK)
        integer_ticks(axes)
        axes.grid(color=FAINT, linewidth=0.5)
        strip_frame(axes)
        if 1 < len(shown) <= _MOST_LABELLED:
            axes.legend(fontsize=7.5, frameon=False)
    return figure


def _line_colour(place: int) -> str:
    # The joint network comes first, in ink; curve 1 + k belongs to group k and has its colour.
    return INK if place == 0 else group_colour(place - 1)


def silhouette_figure(silhouettes: Mapping[int, float], chosen: int) -> Figure:
    """Draw the silhouette of every number of groups that was tried and mark the one that was chosen."""
    figure = new_figure(4.3, 2.7)
    axes = figure.subplots()
    counts = sorted(silhouettes)
    axes.plot(counts, [silhouettes[k] for k in counts], color=INK, linewidth=1.2, marker="o", markersize=3.5)
    if chosen in silhouettes:
        axes.plot([chosen], [silhouettes[chosen]], "o", color=group_colour(1), markersize=8, label=f"chosen: {chosen}")
        axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("number of groups", fontsize=8.5, color=INK)
    axes.set_ylabel("mean silhouette", fontsize=8.5, color=INK)
    integer_ticks(axes)
    axes.grid(color=FAINT, linewidth=0.5)
    strip_frame(axes)
    return figure
