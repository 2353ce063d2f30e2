"""The stages of DMTG as functions, for the trainer and for comparisons: warm start, grouped training, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._copying import copy_of
from pymtg.nets.assignment import TaskAssignment
from pymtg.nets.branched import BranchedNet
from pymtg.nets.grouped import GroupedNet
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._dmtg_run import (
    AssignedNet,
    AssignmentTrace,
    DMTGJob,
    DMTGRun,
    FinetuneJob,
    FinetuneRun,
    OneBranchRun,
)
from pymtg.trainers._loop import Trained, train_network
from pymtg.trainers._run import Job
from pymtg.trainers._seeding import stage_seed
from pymtg.trainers._stages import Setting
from pymtg.trainers.results import StageResult

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["Grouping", "NetMaker", "network_maker", "train_dmtg"]

NetFactory = Callable[[TaskLayout], nn.Module]
GiveShapes = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Grouping:
    """What a DMTG training leaves."""

    net: BranchedNet
    assignment: TaskAssignment
    model: GroupedNet
    groups: TaskGroups
    trace: AssignmentTrace
    data_map: DataMap | None
    stages: tuple[StageResult, ...]
    """The warm start where there was one, the grouped training, the fine-tuning where there was one."""


@dataclass(frozen=True)
class NetMaker:
    """Makes the network to train: a copy of the one given, or a new one from a factory.

    Called with what gives lazy layers their shapes, :meth:`Setting.give_shapes`, before the branches are put together.
    """

    net: Any
    layout: TaskLayout
    num_groups: int | None

    def __call__(self, give_shapes: GiveShapes) -> BranchedNet:
        """Return a network that is nobody else's."""
        made = self._made(give_shapes)
        if isinstance(made, BranchedNet):
            self.check_branches(made)
            return made
        groups = 3 if self.num_groups is None else self.num_groups
        waiting = [made]  # the first of the K is there already
        return BranchedNet.from_factory(
            lambda _: waiting.pop() if waiting else self.single(give_shapes), self.layout, groups
        )

    def single(self, give_shapes: GiveShapes) -> MultiHeadNet:
        """Return one branch, behind the trunk, with a head for every task."""
        made = self._made(give_shapes)
        return made if isinstance(made, MultiHeadNet) else _first_branch(made)

    def check_branches(self, net: BranchedNet) -> None:
        """Raise InvalidArgumentError if a number of groups was given and a network has another."""
        if self.num_groups not in (None, net.num_branches):
            raise InvalidArgumentError(
                f"num_groups must be left out or be the network's own, {net.num_branches}; got {self.num_groups}"
            )

    def _made(self, give_shapes: GiveShapes) -> BranchedNet | MultiHeadNet:
        if isinstance(self.net, BranchedNet):
            made = copy_of(self.net)
            give_shapes(made)
            return made
        made = self.net(self.layout)
        if not isinstance(made, (BranchedNet, MultiHeadNet)):
            raise InvalidTypeError(f"net must make a BranchedNet or a MultiHeadNet; it made a {type(made).__name__}")
        if made.layout != self.layout:
            raise InvalidArgumentError("net must make a network for the layout it is called with; theirs differ")
        give_shapes(made)
        return copy_of(made)  # a factory may hand out one that it keeps


def network_maker(net: Any, layout: TaskLayout, num_groups: int | None) -> NetMaker:
    """Return what makes the network to train, or raise a typed error for what is neither network nor factory."""
    if isinstance(net, BranchedNet):
        if net.layout != layout:
            raise InvalidArgumentError("net must have the layout that is given beside it; theirs differ")
    elif isinstance(net, nn.Module) or not callable(net):
        raise InvalidTypeError(
            f"net must be a BranchedNet, or a factory layout -> BranchedNet or MultiHeadNet; got {type(net).__name__}"
        )
    maker = NetMaker(net, layout, num_groups)
    if isinstance(net, BranchedNet):
        maker.check_branches(net)
    return maker


def train_dmtg(setting: Setting, plan: DMTGPlan, make: NetMaker, *, warm: Trained | None = None) -> Grouping:
    """Train a branched network and its assignment, prune it, fine-tune it where asked for.

    `warm` is a trained network to start from; without one, `plan.warm_epochs` say whether to train it here.
    """
    stages = []
    if warm is None and plan.warm_epochs:
        warm = _warm_start(setting, plan, make)
    if warm is not None:
        stages.append(warm.stage)
    trace = AssignmentTrace()
    data_map = _data_map(setting, plan)
    trained = train_network(
        _job(setting, plan, make, warm, trace, data_map), *_data(setting), kind=DMTGRun, keeper=setting.keeper
    )
    network = trained.network
    assert isinstance(network, AssignedNet)
    stages.append(trained.stage)
    model = network.net.prune(network.assignment.labels())
    if plan.finetune_epochs:
        tuned = _finetuned(setting, plan, model)
        assert isinstance(tuned.network, GroupedNet)
        model = tuned.network
        stages.append(tuned.stage)
    groups = _groups(setting.layout, network, trace, plan)
    return Grouping(network.net, network.assignment, model, groups, trace, data_map, tuple(stages))


def _data(setting: Setting) -> tuple[Any, Any, Any, Any]:
    return setting.train, setting.val, setting.config, setting.reporter


def _job(
    setting: Setting,
    plan: DMTGPlan,
    make: NetMaker,
    warm: Trained | None,
    trace: AssignmentTrace,
    data_map: DataMap | None,
) -> DMTGJob:
    seed = stage_seed(setting.seed, "dmtg")

    def build() -> nn.Module:
        net = make(setting.give_shapes)
        if warm is not None:
            assert isinstance(warm.network, MultiHeadNet)
            net.load_multihead(warm.network)
        assignment = plan.make_assignment(setting.layout, net.num_branches, setting.seed)
        if assignment.num_branches != net.num_branches:
            raise InvalidArgumentError(
                f"assignment must be to {net.num_branches} branches; got one to {assignment.num_branches}"
            )
        return AssignedNet(net, assignment)

    return DMTGJob(
        name="dmtg",
        build=build,
        layout=setting.layout,
        seed=seed,
        epochs=plan.epochs,
        data_map=data_map,
        snapshot_epochs=tuple(sorted({-(-plan.epochs * quarter // 4) for quarter in range(1, 5)})),
        losses=plan.losses,
        plan=plan,
        trace=trace,
        ranks=setting.ranks,
    )


def _data_map(setting: Setting, plan: DMTGPlan) -> DataMap | None:
    if not plan.record:
        return None
    return DataMap(
        setting.train.num_samples, setting.layout, device=setting.config.torch_device, missing=setting.train.missing
    )


def _warm_start(setting: Setting, plan: DMTGPlan, make: NetMaker) -> Trained:
    """Train one branch, with the trunk, on all tasks: the released code's start from an MTL network."""
    job = Job(
        name="warm start",
        build=lambda: make.single(setting.give_shapes),
        layout=setting.layout,
        seed=stage_seed(setting.seed, "joint"),
        epochs=plan.warm_epochs,
        losses=plan.losses,
        ranks=setting.ranks,
    )
    # without losses of its own the stage is STG's joint network, bit for bit
    return train_network(job, *_data(setting), kind=OneBranchRun if plan.losses else None, keeper=setting.keeper)


def _first_branch(net: BranchedNet) -> MultiHeadNet:
    """Return the trunk and the first branch of a network with that branch's heads."""
    if net.heads.linear is None or net.heads.custom:
        raise InvalidArgumentError("warm_epochs must be 0 where heads are not linear; got more")
    branch = net.branch_module(0)
    backbone = branch if net.trunk is None else nn.Sequential(net.trunk, branch)
    single = MultiHeadNet(net.layout, backbone, net.features)
    with torch.no_grad():
        single.head.weight.copy_(net.heads.linear.weight[0].T)
        single.head.bias.copy_(net.heads.linear.bias[0])
    return single


def _finetuned(setting: Setting, plan: DMTGPlan, model: GroupedNet) -> Trained:
    job = FinetuneJob(
        name="fine-tuning",
        build=lambda: model,
        layout=setting.layout,
        seed=stage_seed(setting.seed, "finetune"),
        epochs=plan.finetune_epochs,
        losses=plan.losses,
        plan=plan,
        ranks=setting.ranks,
    )
    trunk = list(model.trunk.parameters()) if plan.freeze_trunk and model.trunk is not None else []
    learned = [parameter.requires_grad for parameter in trunk]
    tuned = train_network(job, *_data(setting), kind=FinetuneRun, keeper=setting.keeper)
    for parameter, before in zip(trunk, learned, strict=True):
        parameter.requires_grad_(before)
    return tuned


def _groups(layout: TaskLayout, network: AssignedNet, trace: AssignmentTrace, plan: DMTGPlan) -> TaskGroups:
    from pymtg.groups import TaskGroups  # brings scikit-learn along

    shares, numbers = trace.shares(network.assignment), trace.numbers(network.assignment)
    labels = [numbers[k] for k in network.assignment.labels().tolist()]
    quality = {
        "entropy": float(network.assignment.entropy().detach()),
        "partition_coefficient": float((shares**2).sum(1).mean()),
        "branches_used": len(set(labels)),
    }
    settings = plan.to_dict() | {"num_groups": shares.shape[1]}  # a network that was given has its own K
    return TaskGroups(layout.names, shares, np.array(labels, dtype=np.int64), quality, settings)
