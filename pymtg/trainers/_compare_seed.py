"""One seed of a comparison: every method in every view, each network trained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from pymtg.data import ArrayTasks, TaskData
from pymtg.errors import InvalidArgumentError
from pymtg.trainers._batches import batch_source
from pymtg.trainers._described import described
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._keeper import Keeper
from pymtg.trainers._methods import Budget, Need, Runner, needs, split_epochs
from pymtg.trainers._progress import Reporter
from pymtg.trainers._resuming import described_run
from pymtg.trainers._run import checked_network
from pymtg.trainers._seeding import seeded, stage_seed
from pymtg.trainers._stages import Setting
from pymtg.trainers._stg_run import STGPlan
from pymtg.trainers.config import ModelFactory, TrainConfig
from pymtg.trainers.results import MethodResult

__all__ = ["Chosen", "Compared", "Comparing"]

Compared: TypeAlias = tuple[str, str, MethodResult]
"""View, method, result."""

_HELD_OUT = 0.2  # of the training set, where the best epoch has to be chosen and the data has no validation set


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Methods and views, and their options."""

    methods: tuple[str, ...]
    views: tuple[str, ...]
    max_epochs: int
    dmtg_options: dict[str, Any]

    def budget(self, view: str, epochs: int, groups: int, tasks: int) -> Budget:
        """Return the epochs of every network under a view, where a network has so many by default."""
        if view == "equal":
            total = (1 + groups) * epochs
            each, e = split_epochs(total, groups), epochs
            return Budget(e, total, e, e, each, each, split_epochs(total, tasks), max(1, total // groups), e)
        e = self.max_epochs if view == "best" else epochs
        warm = e if view == "best" else -(-e // 2)
        return Budget(e, e, e, warm, (e,) * groups, (e,) * groups, (e,) * tasks, e, warm)


@dataclasses.dataclass(frozen=True)
class Comparing:
    """What all seeds of a comparison share."""

    model: ModelFactory
    chosen: Chosen
    plan: STGPlan
    config: TrainConfig
    reporter: Reporter

    def results(self, data: TaskData, seed: int, keeper: Keeper) -> list[Compared]:
        """Train and score every method in every view; `keeper` follows the networks, which come in a fixed order."""
        runners: dict[bool, Runner] = {}
        chosen, plan, found = self.chosen, self.plan, []
        for view in chosen.views:
            best = view == "best"
            if best not in runners:
                runners[best] = self._runner(data, seed, best, keeper)
            runner = runners[best]  # "fixed" and "equal" share one, and so the networks that are the same in both
            groups = plan.num_groups
            if not isinstance(groups, int):
                groups = runner.grouped(chosen.max_epochs if best else plan.epochs).memberships.shape[1]
            budget = chosen.budget(view, plan.epochs, groups, data.layout.num_tasks)
            if any(method.startswith("stg") or method == "random_groups" for method in chosen.methods):
                runner.grouped(budget.joint)  # before any method trains the same joint network without recording
            found += [(view, method, runner.result(method, budget)) for method in chosen.methods]
        return found

    def described(self, data: TaskData, seed: int, seeds: Sequence[int]) -> dict[str, Any]:
        """Return what a seed of this comparison is, JSON-ready: what goes on with it must be the same."""
        val = data.val if "best" in self.chosen.views else None
        setting = Setting.of(self.model, data.layout, self.config, seed, data.train, val, self.reporter)
        options = {
            **described(self.plan),
            **described(self.chosen),
            "dmtg_options": described(DMTGPlan.checked(data.layout, **self.chosen.dmtg_options)),
            "seeds": list(seeds),
        }
        found = described_run(setting, "compare", options)
        found["data"]["test"] = batch_source(data.test, data.layout, self.config, "test").describe()
        return found | {"network": _described_network(setting)}

    def epochs(self, tasks: int) -> int:
        """Return the epochs of all networks of a seed; 0 while the number of groups is unknown."""
        if not isinstance(self.plan.num_groups, int):
            return 0
        distinct: set[tuple[bool, Need]] = set()
        for view in self.chosen.views:
            budget = self.chosen.budget(view, self.plan.epochs, self.plan.num_groups, tasks)
            for method in self.chosen.methods:
                distinct |= {(view == "best", need) for need in needs(method, budget)}
            if "random_groups" in self.chosen.methods:
                distinct.add((view == "best", Need("joint", 0, budget.joint)))
        return sum(need.epochs for _, need in distinct)

    def _runner(self, data: TaskData, seed: int, best: bool, keeper: Keeper) -> Runner:
        config = dataclasses.replace(self.config, keep_best=best)
        train, val = data.train, None
        if best:
            train, val = (data.train, data.val) if data.val is not None else _hold_out(data.train, seed)
        setting = Setting.of(self.model, data.layout, config, seed, train, val, self.reporter)
        test = batch_source(data.test, data.layout, config, "test")
        return Runner(
            dataclasses.replace(setting, keeper=keeper), test, self.plan, dmtg_options=self.chosen.dmtg_options
        )


def _hold_out(train: Dataset[Any], seed: int) -> tuple[Dataset[Any], Dataset[Any]]:
    size = len(train)  # type: ignore[arg-type]
    held = round(size * _HELD_OUT)
    if held < 1 or held == size:
        raise InvalidArgumentError(
            f"data must have a validation set, or enough training samples to hold some out; got {size}"
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(stage_seed(seed, "split")))
    parts = order[held:].sort().values, order[:held].sort().values
    if isinstance(train, ArrayTasks):
        return train.take(parts[0]), train.take(parts[1])
    return Subset(train, parts[0].tolist()), Subset(train, parts[1].tolist())


def _described_network(setting: Setting) -> dict[str, Any]:
    """Return the modules of a network and the shapes of its weights: a factory's name does not tell its widths."""
    with seeded(0, setting.config.torch_device):
        network = checked_network(setting.build(setting.layout))
    leaves = {name: module for name, module in network.named_modules() if not any(True for _ in module.children())}
    return {
        **{name or "network": _shown_module(module) for name, module in leaves.items()},
        **{name: list(value.shape) for name, value in network.state_dict().items()},
    }


def _shown_module(module: nn.Module) -> str:
    """Return a module's own words, kind and arguments with most of them; never an address."""
    text = repr(module)
    return type(module).__qualname__ if " at 0x" in text else text
