"""The methods of a comparison: which networks each needs, and what it makes of their predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pymtg.metrics import score
from pymtg.nets.multihead import count_parameters
from pymtg.trainers._batches import BatchSource
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._loop import Trained
from pymtg.trainers._predict import combine_networks
from pymtg.trainers._seeding import stage_seed
from pymtg.trainers._stages import Setting
from pymtg.trainers._stg_run import Grouped, STGPlan, group_from_joint, hard_weights
from pymtg.trainers.results import MethodResult

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["ABLATIONS", "METHODS", "Budget", "Need", "Runner", "needs", "permuted_rows", "split_epochs"]

METHODS = ("stg_soft", "stg_hard", "stg_joint", "dmtg", "dmtg_warm", "mtl", "ensemble", "random_groups", "stl")
ABLATIONS = ("dmtg_diagonal", "dmtg_random")


@dataclass(frozen=True)
class Need:
    """One network: its kind ("joint", "single", "group", "warm", "random", "dmtg..."), number, epochs.

    A branched network trains so many networks at once as it has branches: `networks`.
    """

    kind: str
    index: int
    epochs: int
    networks: int = 1

    @property
    def cost(self) -> int:
        """Epochs, counted once for every network trained in them."""
        return self.epochs * self.networks


@dataclass(frozen=True)
class Budget:
    """Epochs of each kind of network under one view; the lists have one entry per network."""

    joint: int
    mtl: int
    fresh: int
    warm: int
    ensemble: tuple[int, ...]
    random: tuple[int, ...]
    stl: tuple[int, ...]
    dmtg: int
    dmtg_warm: int


def split_epochs(total: int, networks: int) -> tuple[int, ...]:
    """Divide epochs among networks as evenly as whole epochs go, at least one each."""
    return tuple(max(1, total // networks + (i < total % networks)) for i in range(networks))


def needs(method: str, budget: Budget) -> list[Need]:
    """Return the networks whose training a method has to pay for."""
    joint, groups = Need("joint", 0, budget.joint), range(len(budget.random))
    if method.startswith("dmtg"):
        warm = method == "dmtg_warm"
        branched = Need(method, 0, budget.dmtg_warm if warm else budget.dmtg, len(groups))
        return [joint, branched] if warm else [branched]
    return {
        "stg_soft": [joint, *(Need("group", k, budget.fresh) for k in groups)],
        "stg_hard": [joint, *(Need("group", k, budget.fresh) for k in groups)],
        "stg_joint": [joint, *(Need("warm", k, budget.warm) for k in groups)],
        "mtl": [Need("joint", 0, budget.mtl)],
        "ensemble": [Need("joint", i, epochs) for i, epochs in enumerate(budget.ensemble)],
        "random_groups": [Need("random", k, epochs) for k, epochs in enumerate(budget.random)],
        "stl": [Need("single", t, epochs) for t, epochs in enumerate(budget.stl)],
    }[method]


def permuted_rows(memberships: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Deal the rows of a membership matrix out to the tasks at random: the same sizes and softness, no meaning."""
    order = np.random.default_rng(stage_seed(seed, "random")).permutation(len(memberships))
    return memberships[order]


@dataclass
class Runner:
    """Trains the networks of one seed on demand, each once, and turns them into results."""

    setting: Setting
    test: BatchSource
    plan: STGPlan | None = None
    memberships: npt.NDArray[np.float64] | None = None
    dmtg_options: Mapping[str, Any] = field(default_factory=dict)
    _trained: dict[Need, Trained] = field(default_factory=dict)
    _grouped: dict[int, Grouped] = field(default_factory=dict)
    _branches: dict[Need, TaskGroups] = field(default_factory=dict)

    def grouped(self, epochs: int) -> Grouped:
        """Return the groups found from a joint network of so many epochs, which then also serves as that network."""
        if epochs not in self._grouped:
            assert self.plan is not None
            found = group_from_joint(self.setting, self.plan, epochs=epochs)
            self._grouped[epochs] = found
            self._trained[Need("joint", 0, epochs)] = found.joint
        return self._grouped[epochs]

    def network(self, need: Need, budget: Budget) -> Trained:
        """Return a network, training it unless it was before."""
        if need not in self._trained:
            self._trained[need] = self._train(need, budget)
        return self._trained[need]

    def _train(self, need: Need, budget: Budget) -> Trained:
        kind, index, epochs = need.kind, need.index, need.epochs
        if kind.startswith("dmtg"):
            warm = self.network(Need("joint", 0, budget.joint), budget) if kind == "dmtg_warm" else None
            return self._branched(need, warm)
        if kind == "joint":
            return self.setting.joint(index, epochs=epochs)
        if kind == "single":
            return self.setting.single(index, epochs=epochs)
        start = self.grouped(budget.joint).joint.network if kind == "warm" else None
        weights = self._weights(kind, budget)[:, index]
        return self.setting.specialised(index, weights, epochs=epochs, start=start, name=kind)

    def _branched(self, need: Need, joint: Trained | None) -> Trained:
        """Train a branched network; what is left of it after pruning is the network."""
        from pymtg.trainers._dmtg_stages import network_maker, train_dmtg

        how = need.kind.removeprefix("dmtg").removeprefix("_")
        options = {"epochs": need.epochs, "num_groups": need.networks, **self.dmtg_options}
        if how in ("diagonal", "random"):
            options["assignment"] = how
        plan = DMTGPlan.checked(self.setting.layout, **options)
        make = network_maker(self.setting.model, self.setting.layout, need.networks)
        found = train_dmtg(self.setting, plan, make, warm=joint if how == "warm" else None)
        self._branches[need] = found.groups
        stage = dataclasses.replace(found.stages[-1], parameters=count_parameters(found.model))
        return Trained(found.model, stage)

    def _weights(self, kind: str, budget: Budget) -> npt.NDArray[np.float64]:
        found = self.grouped(budget.joint).memberships if self.memberships is None else self.memberships
        return permuted_rows(found, self.setting.seed) if kind == "random" else found

    def result(self, method: str, budget: Budget) -> MethodResult:
        """Train what a method needs, predict the test set and score it."""
        grouped = self.grouped(budget.joint) if method.startswith("stg") else None
        needed = needs(method, budget)
        trained = [self.network(need, budget) for need in needed]
        used = trained[1:] if grouped is not None or method == "dmtg_warm" else trained
        probabilities, targets = self._combined(method, used, budget)
        return MethodResult(
            name=method,
            scores=score(probabilities, targets, self.setting.layout),
            seconds=sum(one.stage.seconds for one in trained) + (0.0 if grouped is None else grouped.seconds),
            parameters=sum(one.stage.parameters for one in used),
            epochs=sum(need.cost for need in needed),
            stages=tuple(one.stage for one in trained),
            groups=self._groups(method, needed[-1], budget),
        )

    def _groups(self, method: str, last: Need, budget: Budget) -> TaskGroups | None:
        """Return the groups that a method has; `last` is the last of its networks."""
        if method == "random_groups":
            return None if self.memberships is not None else self._dealt_out(self._weights("random", budget))
        return self.grouped(budget.joint).groups if method.startswith("stg") else self._branches.get(last)

    def _dealt_out(self, memberships: npt.NDArray[np.float64]) -> TaskGroups:
        from pymtg.groups import TaskGroups  # brings scikit-learn along

        return TaskGroups(self.setting.layout.names, memberships, memberships.argmax(axis=1))

    def _combined(self, method: str, used: Sequence[Trained], budget: Budget) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.setting.layout
        if method == "stl":
            tasks = [(self.test.select([t]), layout.select([t])) for t in range(layout.num_tasks)]
            pairs = [self.setting.predict(one.network, *task) for one, task in zip(used, tasks, strict=True)]
            return torch.cat([p for p, _ in pairs], dim=1), torch.cat([y for _, y in pairs], dim=1)
        pairs = [self.setting.predict(one.network, self.test) for one in used]
        if method in ("mtl", "ensemble") or method.startswith("dmtg"):
            weights = np.full((layout.num_tasks, len(used)), 1 / len(used))
        else:
            weights = self._weights("random" if method == "random_groups" else "group", budget)
            if method == "stg_hard":
                weights = hard_weights(weights)
        return combine_networks([p for p, _ in pairs], torch.from_numpy(weights.copy()), layout), pairs[0][1]
