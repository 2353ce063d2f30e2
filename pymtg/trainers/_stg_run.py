"""The three steps of STG as functions, for the trainer and for comparisons, which share the joint network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymtg._ranges import stage as stage_range
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._stacked import CannotStackError
from pymtg.trainers._loop import Trained
from pymtg.trainers._shared_state import on_first
from pymtg.trainers._spread import train_spread
from pymtg.trainers._stages import Setting, group_tasks
from pymtg.trainers._together import check_together, pays_together, train_together
from pymtg.trainers.config import check_choice, check_int

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["Grouped", "STGPlan", "check_form", "group_from_joint", "hard_weights", "specialise"]

_STARTS = ("fresh", "joint")
_SNAPSHOTS = ("auto", "memory", "gram", "disk", "host")
_FORMS = ("auto", "together", "one-by-one", "spread")
_MOST_IN_MEMORY = 2**30  # bytes of snapshots that "auto" keeps in memory
_MODES = ("kmeans-fuzzified", "fuzzy-cmeans", "kmeans", "points")


@dataclass(frozen=True)
class STGPlan:
    """The options of STG beyond those of the loop, with defaults filled in."""

    num_groups: int | str
    epochs: int
    snapshot_epochs: tuple[int, ...]
    specialised_epochs: int
    init: str
    fuzzifier: float
    mode: str
    n_init: int
    snapshots: str = "auto"
    specialise: str = "auto"

    @classmethod
    def checked(
        cls,
        num_tasks: int,
        *,
        num_groups: int | str,
        epochs: int,
        snapshot_epochs: Sequence[int] | None = None,
        specialised_epochs: int | None = None,
        init: str = "fresh",
        fuzzifier: float = 1.07,
        mode: str = "kmeans-fuzzified",
        n_init: int = 10,
        snapshots: str = "auto",
        specialise: str = "auto",
    ) -> STGPlan:
        """Check every option and fill in what depends on others."""
        if num_groups == "auto":
            if num_tasks < 3:
                raise InvalidArgumentError(f"num_groups='auto' needs at least 3 tasks to choose from; got {num_tasks}")
        elif check_int("num_groups", num_groups, 1) > num_tasks:
            raise InvalidArgumentError(
                f"num_groups must be at most the number of tasks ({num_tasks}), or 'auto'; got {num_groups}"
            )
        check_choice("init", init, _STARTS)
        if check_choice("snapshots", snapshots, _SNAPSHOTS) == "gram" and mode == "points":
            raise InvalidArgumentError("snapshots must be 'memory', 'disk' or 'auto' for mode 'points'; got 'gram'")
        if specialised_epochs is None:
            specialised_epochs = epochs if init == "fresh" else -(-epochs // 2)
        if isinstance(fuzzifier, bool) or not isinstance(fuzzifier, (int, float)):
            raise InvalidTypeError(f"fuzzifier must be a number; got {fuzzifier!r}")
        if not 1 < fuzzifier < float("inf"):
            raise InvalidArgumentError(f"fuzzifier must be above 1 and finite; got {fuzzifier}")
        return cls(
            num_groups=num_groups,
            epochs=epochs,
            snapshot_epochs=_checked_snapshots(snapshot_epochs, epochs),
            specialised_epochs=check_int("specialised_epochs", specialised_epochs, 1),
            init=init,
            fuzzifier=float(fuzzifier),
            mode=check_choice("mode", mode, _MODES),
            n_init=check_int("n_init", n_init, 1),
            snapshots=snapshots,
            specialise=check_choice("specialise", specialise, _FORMS),
        )

    def snapshots_for(self, num_samples: int, num_tasks: int) -> str:
        """Return where the snapshots of a map of this size go."""
        if self.snapshots != "auto":
            return self.snapshots
        return "memory" if 8 * num_samples * num_tasks * len(self.snapshot_epochs) <= _MOST_IN_MEMORY else "disk"


def _checked_snapshots(snapshot_epochs: Sequence[int] | None, epochs: int) -> tuple[int, ...]:
    if snapshot_epochs is None:
        return tuple(sorted({-(-epochs * quarter // 4) for quarter in range(1, 5)}))
    if isinstance(snapshot_epochs, (str, bytes)) or not hasattr(snapshot_epochs, "__iter__"):
        raise InvalidTypeError(f"snapshot_epochs must be a sequence of integers; got {snapshot_epochs!r}")
    chosen = tuple(check_int("snapshot_epochs", epoch, 1) for epoch in snapshot_epochs)
    if not chosen:
        raise InvalidArgumentError("snapshot_epochs must name at least one epoch; got none")
    if len(set(chosen)) != len(chosen):
        raise InvalidArgumentError(f"snapshot_epochs must not repeat an epoch; got {list(chosen)}")
    if max(chosen) > epochs:
        raise InvalidArgumentError(f"snapshot_epochs must not go beyond epochs ({epochs}); got {max(chosen)}")
    return tuple(sorted(chosen))


@dataclass(frozen=True)
class Grouped:
    """Steps 1 and 2: the joint network, its data map, and the groups found from it."""

    joint: Trained
    data_map: DataMap
    groups: TaskGroups
    seconds: float

    @property
    def memberships(self) -> npt.NDArray[np.float64]:
        """``u`` [T, K]."""
        return np.asarray(self.groups.memberships, dtype=np.float64)


def group_from_joint(
    setting: Setting, plan: STGPlan, *, epochs: int | None = None, missing: bool | None = None
) -> Grouped:
    """Train the joint network with recording, then group the tasks.

    `epochs` prolongs the joint training beyond the plan's, whose snapshots stay where they are.
    """
    data_map = DataMap(
        setting.train.num_samples,
        setting.layout,
        device=setting.config.torch_device,
        missing=setting.train.missing if missing is None else missing,
        snapshots=plan.snapshots_for(setting.train.num_samples, setting.layout.num_tasks),
    )
    joint = setting.joint(
        epochs=plan.epochs if epochs is None else epochs, data_map=data_map, snapshots=plan.snapshot_epochs
    )

    def group() -> tuple[TaskGroups, float]:
        return group_tasks(data_map, setting, plan.num_groups, plan.mode, plan.fuzzifier, plan.n_init)

    with stage_range("grouping"):
        groups, seconds = setting.keeper.computed(
            "grouping",
            lambda: on_first(setting.ranks, group, _packed_groups, _unpacked_groups),
            _packed_groups,
            _unpacked_groups,
        )
    return Grouped(joint, data_map, groups, seconds)


def _packed_groups(found: tuple[TaskGroups, float]) -> dict[str, Any]:
    groups, seconds = found
    return {"groups": groups.to_dict(), "seconds": seconds}


def _unpacked_groups(state: dict[str, Any]) -> tuple[TaskGroups, float]:
    from pymtg.groups import TaskGroups

    return TaskGroups.from_dict(state["groups"]), state["seconds"]


def check_form(setting: Setting, plan: STGPlan) -> None:
    """Raise InvalidArgumentError, before anything is trained, if step 3 cannot have the form that the plan asks for."""
    if plan.specialise == "together":
        try:
            check_together(setting)
        except CannotStackError as reason:
            raise _not_together(reason) from None


def specialise(setting: Setting, plan: STGPlan, grouped: Grouped) -> tuple[list[Trained], bool]:
    """Step 3: train the K networks, from the joint one where the plan says so; return them and whether together."""
    start = grouped.joint.network if plan.init == "joint" else None
    memberships, epochs = grouped.memberships, plan.specialised_epochs
    if setting.ranks is not None and memberships.shape[1] > 1 and plan.specialise in ("auto", "spread"):
        pays = _pays(setting, plan, grouped)
        return train_spread(setting, memberships, epochs=epochs, start=start, together=pays), False
    if memberships.shape[1] > 1 and (plan.specialise == "together" or _pays(setting, plan, grouped)):
        try:
            return train_together(setting, memberships, epochs=epochs, start=start), True
        except CannotStackError as reason:  # the factory's networks are not alike
            if plan.specialise == "together":
                raise _not_together(reason) from None
    return [setting.specialised(k, u, epochs=epochs, start=start) for k, u in enumerate(memberships.T)], False


def _pays(setting: Setting, plan: STGPlan, grouped: Grouped) -> bool:
    return plan.specialise == "auto" and pays_together(setting, grouped.joint.network)


def _not_together(reason: CannotStackError) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"specialise must be 'auto' or 'one-by-one' for these networks, which cannot be trained together: {reason}"
    )


def hard_weights(memberships: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 1 at each row's largest membership (the first of equal ones), 0 elsewhere."""
    weights = np.zeros_like(memberships)
    weights[np.arange(len(memberships)), memberships.argmax(axis=1)] = 1.0
    return weights
