"""What the pictures share: a palette, a canvas without pyplot, and saving."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymtg.report.files import save_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GROUP_COLOURS", "group_colour", "new_figure", "plain_text", "png", "save_figure"]

# After Okabe and Ito, told apart by colour-blind readers too; each dark enough for text on white.
GROUP_COLOURS = ("#0072B2", "#C65102", "#00845F", "#A8487F", "#5A4FA3", "#8C6D00", "#444444")
INK = "#222222"
FAINT = "#d9d9d9"
LEAST_HEIGHT = 0.018  # of a block of tasks 9 inches high: groups lower than this get no words at its side


def group_colour(group: int) -> str:
    """Return the colour that stands for a group in every picture and in the page."""
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure on an Agg canvas, outside of pyplot: the caller's matplotlib state stays as it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_text(text: str, most: int = 28) -> str:
    """Return `text` shortened, without line breaks, and with the dollar signs escaped that would start mathematics."""
    text = " ".join(text.split())
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text.replace("$", r"\$")


def strip_frame(axes: Any) -> None:
    """Leave the left and bottom lines of the axes, in grey."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.tick_params(colors="#444444", labelsize=8, length=3)


def add_colour_bar(figure: Figure, grid: Any, colour_map: str, label: str, **placing: Any) -> None:
    """Put a bar for the values 0 to 1 at the right of all the axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colour_map), ax=grid.ravel().tolist(), **placing)
    bar.set_label(label, fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def integer_ticks(axes: Any) -> None:
    """Let the x axis count in whole numbers."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return the figure as a PNG file; the bytes depend on the picture only, not on the day or the version."""
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A task named in a script that the bundled font lacks is drawn as boxes: no reason to fail a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(path: str | os.PathLike[str], figure: Figure, dpi: int = 110) -> Path:
    """Write the figure as a PNG, atomically."""
    return save_bytes(path, png(figure, dpi))
