"""The options of DMTG beyond those of the loop."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pymtg._task_split import TaskLossFunction, split_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets.assignment import INITS, SAMPLING, TaskAssignment
from pymtg.nets.temperature import Temperature
from pymtg.tasks import TaskLayout
from pymtg.trainers._seeding import stage_seed
from pymtg.trainers.config import check_choice, check_int

__all__ = ["ASSIGNMENTS", "DMTGPlan"]

ASSIGNMENTS = ("learned", "diagonal", "random")
_OF_A_NEW_ASSIGNMENT = ("sampling", "init", "eps")


@dataclass(frozen=True)
class DMTGPlan:
    """The options of DMTG, checked; see :class:`pymtg.DMTGTrainer`."""

    num_groups: int = 3
    epochs: int = 20
    sampling: str = "gumbel"
    init: str = "ones"
    eps: float = 0.0
    assignment: str | TaskAssignment = "learned"
    assignment_lr: float = 1e-2
    assignment_warmup: float = 0.02
    temperature: Temperature = field(default_factory=lambda: Temperature(2.5))
    entropy_weight: float = 0.0
    balance_weight: float = 0.1
    warm_epochs: int = 0
    finetune_epochs: int = 0
    freeze_trunk: bool = False
    drop_branches: bool = True
    losses: Mapping[str, str | TaskLossFunction] | None = None
    record: bool = False

    @classmethod
    def checked(cls, layout: TaskLayout, **options: Any) -> DMTGPlan:
        """Check every option."""
        if "temperature" in options:
            options["temperature"] = Temperature.of(options["temperature"])
        plan = cls(**options)
        check_int("num_groups", plan.num_groups, 1)
        check_int("epochs", plan.epochs, 1)
        check_int("warm_epochs", plan.warm_epochs, 0)
        check_int("finetune_epochs", plan.finetune_epochs, 0)
        _check_number("assignment_lr", plan.assignment_lr, above_zero=True)
        _check_number("assignment_warmup", plan.assignment_warmup)
        if plan.assignment_warmup >= 1:
            raise InvalidArgumentError(f"assignment_warmup must be a share below 1; got {plan.assignment_warmup}")
        _check_number("entropy_weight", plan.entropy_weight)
        _check_number("balance_weight", plan.balance_weight)
        _check_number("eps", plan.eps)
        for name in ("freeze_trunk", "drop_branches", "record"):
            if not isinstance(getattr(plan, name), bool):
                raise InvalidTypeError(f"{name} must be True or False; got {getattr(plan, name)!r}")
        check_choice("sampling", plan.sampling, SAMPLING)
        check_choice("init", plan.init, INITS)
        _check_assignment(plan, layout)
        _check_effect(plan)
        split_tasks(layout, plan.losses)
        return plan

    def make_assignment(self, layout: TaskLayout, branches: int, seed: int) -> TaskAssignment:
        """Return the assignment that training starts from, drawn by the seed."""
        tasks = layout.num_tasks
        if isinstance(self.assignment, TaskAssignment):
            return copy.deepcopy(self.assignment)
        if self.assignment == "diagonal":
            return TaskAssignment.fixed(torch.arange(tasks) % branches, branches)
        if self.assignment == "random":
            order = np.random.default_rng(stage_seed(seed, "assignment")).permutation(tasks)
            return TaskAssignment.fixed(torch.from_numpy(order % branches), branches)
        return TaskAssignment(
            tasks,
            branches,
            sampling=self.sampling,
            init=self.init,
            eps=self.eps,
            seed=stage_seed(seed, "assignment"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options, JSON-ready."""
        given = self.assignment if isinstance(self.assignment, str) else repr(self.assignment)
        losses = {name: loss if isinstance(loss, str) else repr(loss) for name, loss in (self.losses or {}).items()}
        return {
            "num_groups": self.num_groups,
            "epochs": self.epochs,
            "assignment": given,
            "sampling": self.sampling,
            "init": self.init,
            "eps": self.eps,
            "assignment_lr": self.assignment_lr,
            "assignment_warmup": self.assignment_warmup,
            "temperature": str(self.temperature),
            "entropy_weight": self.entropy_weight,
            "balance_weight": self.balance_weight,
            "warm_epochs": self.warm_epochs,
            "finetune_epochs": self.finetune_epochs,
            "freeze_trunk": self.freeze_trunk,
            "drop_branches": self.drop_branches,
            "losses": losses,
        }


def _check_number(name: str, value: Any, *, above_zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise InvalidArgumentError(f"{name} must be finite and {'above' if above_zero else 'at least'} 0; got {value}")


def _check_assignment(plan: DMTGPlan, layout: TaskLayout) -> None:
    given = plan.assignment
    if not isinstance(given, TaskAssignment):
        if not isinstance(given, str) or given not in ASSIGNMENTS:
            known = ", ".join(map(repr, ASSIGNMENTS))
            raise InvalidArgumentError(f"assignment must be one of {known}, or a TaskAssignment; got {given!r}")
        if plan.sampling == "fixed" and given == "learned":
            raise InvalidArgumentError(
                "sampling 'fixed' must come with assignment 'diagonal', 'random' or a TaskAssignment; got 'learned'"
            )
        return
    if given.num_tasks != layout.num_tasks:
        raise InvalidArgumentError(f"assignment must be of {layout.num_tasks} tasks; got one of {given.num_tasks}")


def _check_effect(plan: DMTGPlan) -> None:
    """Raise InvalidArgumentError for values, not the default ones, of which a given assignment has its own."""
    if not isinstance(plan.assignment, TaskAssignment):
        return
    default, own = DMTGPlan(), {"sampling": plan.assignment.sampling}
    useless = {
        name: getattr(plan, name)
        for name in _OF_A_NEW_ASSIGNMENT
        if getattr(plan, name) not in (getattr(default, name), own.get(name))
    }
    if useless:
        raise InvalidArgumentError(
            f"{', '.join(useless)} must be left out for an assignment that is given, which has its own; "
            f"got {', '.join(f'{name}={value}' for name, value in useless.items())}"
        )
