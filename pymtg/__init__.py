"""pymtg: multi-task grouping on PyTorch.

Data maps recorded inside the loss, tasks clustered by their maps, specialised models trained on the groups.
Names are loaded on first use: `import pymtg` alone imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymtg._backend import available_backends, get_backend, set_backend
    from pymtg._faults import check_errors, debug
    from pymtg.branched_loss import BranchedLoss
    from pymtg.cluster import FuzzyKMeans
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups, cluster_tasks
    from pymtg.hooks import record
    from pymtg.losses import MultiTaskLoss
    from pymtg.tasks import TaskLayout
    from pymtg.trainers import DMTGTrainer, STGTrainer

_HOMES = {
    "BranchedLoss": "pymtg.branched_loss",
    "DMTGTrainer": "pymtg.trainers",
    "DataMap": "pymtg.datamap",
    "FuzzyKMeans": "pymtg.cluster",
    "MultiTaskLoss": "pymtg.losses",
    "STGTrainer": "pymtg.trainers",
    "TaskGroups": "pymtg.groups",
    "TaskLayout": "pymtg.tasks",
    "available_backends": "pymtg._backend",
    "check_errors": "pymtg._faults",
    "cluster_tasks": "pymtg.groups",
    "debug": "pymtg._faults",
    "get_backend": "pymtg._backend",
    "record": "pymtg.hooks",
    "set_backend": "pymtg._backend",
}
_SUBMODULES = {
    "branched_loss",
    "cluster",
    "data",
    "datamap",
    "errors",
    "functional",
    "hooks",
    "losses",
    "metrics",
    "nets",
    "ranks",
    "report",
    "tasks",
    "trainers",
}

__all__ = [
    "BranchedLoss",
    "DMTGTrainer",
    "DataMap",
    "FuzzyKMeans",
    "MultiTaskLoss",
    "STGTrainer",
    "TaskGroups",
    "TaskLayout",
    "available_backends",
    "check_errors",
    "cluster_tasks",
    "debug",
    "get_backend",
    "record",
    "set_backend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"pymtg.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("pymtg")
    else:
        raise AttributeError(f"module 'pymtg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES, "__version__"})
