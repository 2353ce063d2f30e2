"""Groups as the tables and pictures take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymtg.report import GroupTable

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["group_table"]


def group_table(groups: TaskGroups) -> GroupTable:
    """Return the groups as the report takes them."""
    silhouettes = groups.quality.get("silhouette_scores") or {}
    return GroupTable(
        names=groups.names,
        memberships=groups.memberships,
        labels=groups.labels.tolist(),
        quality={name: value for name, value in groups.quality.items() if name != "silhouette_scores"},
        silhouettes={int(count): float(value) for count, value in silhouettes.items()},
    )
