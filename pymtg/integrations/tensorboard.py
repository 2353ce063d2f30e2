"""Data maps and memberships for TensorBoard (``pip install 'pymtg[tensorboard]'``).

    from torch.utils.tensorboard import SummaryWriter
    from pymtg.integrations.tensorboard import add_data_map, add_groups

    with SummaryWriter("runs/mine") as writer:
        add_data_map(writer, data_map, groups)
        add_groups(writer, groups)

The trainers' ``tensorboard=`` and the commands' ``--tensorboard`` write these at the end, and scalars on the way.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups

__all__ = ["MOST_TASKS", "add_data_map", "add_groups", "check_installed"]

MOST_TASKS = 64
"""Tasks that get curves or histograms of their own; of more, TensorBoard is slow to show any."""


def check_installed(argument: str) -> None:
    """Raise InvalidArgumentError, naming the extra, unless what TensorBoard's files need is installed."""
    missing = [package for package in ("tensorboard", "matplotlib") if find_spec(package) is None]
    if missing:
        raise InvalidArgumentError(
            f"{argument} needs {' and '.join(missing)}, not installed here: pip install 'pymtg[tensorboard]'"
        )


def add_data_map(
    writer: Any,
    data_map: DataMap,
    groups: TaskGroups | None = None,
    *,
    step: int | None = None,
    tag: str = "data_map",
) -> None:
    """Write a data map: its picture, and histograms of mean, deviation and correctness of what was observed.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``.
    data_map
        The map [M, T]. The picture has a panel a task, mean against deviation coloured by correctness; up to 36 tasks,
        of more a selection.
    groups
        Orders and names the panels by group.
    step
        The step they stand at, such as the epoch.
    tag
        The picture's tag; histograms are ``tag/mean/TASK`` and so on, up to 64 tasks, and ``tag/mean`` over all tasks.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `writer` cannot write figures and histograms, or another argument is something else; if `groups` are of other
        tasks than the map.
    """
    from pymtg.datamap import DataMap
    from pymtg.report.content import GroupTable
    from pymtg.report.data_maps import data_map_figure

    _check_writer(writer)
    if not isinstance(data_map, DataMap):
        raise InvalidTypeError(f"data_map must be a DataMap; got {type(data_map).__name__}")
    names = list(data_map.layout.names)
    if groups is not None and list(groups.names) != names:
        raise InvalidArgumentError("groups must be of the tasks of data_map; their names differ")
    table = None if groups is None else GroupTable.of(groups)
    writer.add_figure(tag, data_map_figure(data_map, table), step)
    seen = (data_map.count > 0).cpu().numpy()
    for plane in ("mean", "std", "correctness"):
        values = getattr(data_map, plane).cpu().numpy()
        _add_histogram(writer, f"{tag}/{plane}", values[seen], step)
        for t, name in enumerate(names if len(names) <= MOST_TASKS else ()):
            _add_histogram(writer, f"{tag}/{plane}/{name}", values[seen[:, t], t], step)


def add_groups(writer: Any, groups: TaskGroups, *, step: int | None = None, tag: str = "memberships") -> None:
    """Write the memberships [T, K] of task groups: a heat map, ordered by group, and a table of the members as text.

    `writer`, `step`, `tag` and what is raised are as in :func:`add_data_map`; the text's tag is ``tag/groups``.
    """
    from pymtg.groups import TaskGroups
    from pymtg.report.content import GroupTable
    from pymtg.report.heatmap import memberships_figure

    _check_writer(writer)
    if not isinstance(groups, TaskGroups):
        raise InvalidTypeError(f"groups must be TaskGroups; got {type(groups).__name__}")
    table = GroupTable.of(groups)
    writer.add_figure(tag, memberships_figure(table), step)
    rows = ["| group | tasks |", "| --- | --- |"]
    for k in range(table.num_groups):
        members = ", ".join(f"{_cell(table.names[t])} ({table.strength(t):.2f})" for t in table.members(k))
        rows.append(f"| {k} | {members} |")
    writer.add_text(f"{tag}/groups", "\n".join(rows), step)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _check_writer(writer: Any) -> None:
    wanted = ("add_figure", "add_histogram", "add_text")
    if not all(callable(getattr(writer, name, None)) for name in wanted):
        raise InvalidTypeError(f"writer must be a torch.utils.tensorboard.SummaryWriter; got {type(writer).__name__}")


def _add_histogram(writer: Any, tag: str, values: np.ndarray, step: int | None) -> None:
    if values.size:  # no histogram of nothing: a task whose labels are all missing
        writer.add_histogram(tag, values, step)
