"""Groups as the tables and pictures take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pymtg.report import GroupTable

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["group_table"]


def group_table(groups: TaskGroups) -> GroupTable:
    """Return the groups as the report takes them."""
    return GroupTable(
        names=list(groups.names),
        memberships=np.asarray(groups.memberships, dtype=float),
        labels=[int(label) for label in groups.labels],
    )
