"""What DMTG's training does differently from the plain loop: a draw per step, the assignment's own optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pymtg._ranges import span
from pymtg.branched_loss import BranchedLoss
from pymtg.errors import InvalidArgumentError
from pymtg.losses import MultiTaskLoss
from pymtg.nets._copying import copy_of
from pymtg.nets.assignment import TaskAssignment
from pymtg.nets.branched import BranchedNet
from pymtg.nets.grouped import GroupedNet
from pymtg.nets.multihead import count_parameters
from pymtg.trainers._batches import BatchSource
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._predict import autocast, checked_logits, weight_dtype, with_dtype
from pymtg.trainers._run import Best, Job, Run
from pymtg.trainers._run_state import load_weights
from pymtg.trainers.config import TrainConfig
from pymtg.trainers.results import EpochRecord

__all__ = ["AssignedNet", "AssignmentTrace", "DMTGJob", "DMTGRun", "FinetuneJob", "FinetuneRun", "OneBranchRun"]


class AssignedNet(nn.Module):
    """A branched network and its assignment; in eval mode every task comes from its most probable branch."""

    def __init__(self, net: BranchedNet, assignment: TaskAssignment) -> None:
        super().__init__()
        self.net = net
        self.assignment = assignment
        self.input_dtype = weight_dtype(net)  # theta has a dtype of its own

    def forward(self, inputs: Tensor) -> Any:
        """Return what all K x T heads do in training mode, each task's own output [B, C] in eval mode."""
        inputs = with_dtype(inputs, self.input_dtype)
        return self.net(inputs) if self.training else self.net.forward_chosen(inputs, self.assignment.labels())


@dataclass
class AssignmentTrace:
    """What became of an assignment, an entry an epoch and one before the first."""

    probabilities: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """[T, K] each, 0 for a branch that was dropped."""
    temperatures: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    """How many tasks have another most probable branch than an epoch before."""
    dropped: dict[int, int] = field(default_factory=dict)
    """The epoch after which a branch, by its number, was dropped."""
    start: tuple[int, ...] = ()
    """What the branches were called when training began; their numbers here are positions among these."""
    parameters: int = 0
    """Of the network when training began, with all its branches, and theta."""

    def numbers(self, assignment: TaskAssignment) -> list[int]:
        """Return the numbers of the branches that are left."""
        return [self.start.index(branch) for branch in assignment.branch_ids]

    def shares(self, assignment: TaskAssignment) -> npt.NDArray[np.float64]:
        """Return ``softmax(theta)`` [T, K] in the numbers that training began with, 0 for a dropped branch."""
        found = np.zeros((assignment.num_tasks, len(self.start)))
        left = assignment.probabilities().double()
        found[:, self.numbers(assignment)] = (left / left.sum(1, keepdim=True)).cpu().numpy()
        return found

    def add(self, assignment: TaskAssignment, temperature: float) -> None:
        """Note the state of an assignment: one read from the device."""
        self.start = self.start or assignment.branch_ids
        shares = self.shares(assignment)
        with torch.no_grad():
            self.entropies.append(float(assignment.entropy()))
        before = self.probabilities[-1].argmax(1) if self.probabilities else shares.argmax(1)
        self.moved.append(int((before != shares.argmax(1)).sum()))
        self.probabilities.append(shares)
        self.temperatures.append(temperature)

    def forget_after(self, epoch: int) -> None:
        """Take back what was noted of dropping branches in later epochs: training went back to this one."""
        self.dropped = {branch: last for branch, last in self.dropped.items() if last <= epoch}

    @property
    def note(self) -> str:
        """The last epoch in a few words, for the progress bar."""
        return f"entropy {self.entropies[-1]:.3g}, {self.moved[-1]} moved"


@dataclass(frozen=True)
class DMTGJob(Job):
    """A branched network to train, and where to note what becomes of its assignment."""

    plan: DMTGPlan = field(default_factory=DMTGPlan)
    trace: AssignmentTrace = field(default_factory=AssignmentTrace)


class DMTGRun(Run):
    """Trains an :class:`AssignedNet` on the sum of ``Z_tk loss_tk`` and the weighted terms of the assignment."""

    job: DMTGJob
    network: AssignedNet

    def __init__(self, job: DMTGJob, config: TrainConfig, train: BatchSource, val: BatchSource | None) -> None:
        super().__init__(job, config, train, val)
        self.plan = job.plan
        self.steps = job.epochs * self.batches
        self.best_network: nn.Module | None = None
        self._whole: AssignedNet | None = None  # while a checkpoint is loaded: a copy with all branches
        device = config.torch_device
        counts = torch.tensor(job.layout.num_classes)
        self.task_of_column = torch.repeat_interleave(torch.arange(job.layout.num_tasks), counts).to(device)
        self.column = torch.arange(job.layout.num_logits, device=device)
        self.task = torch.arange(job.layout.num_tasks, device=device)
        self.recorder = None if job.data_map is None else MultiTaskLoss(job.layout, data_map=job.data_map)
        job.trace.parameters = count_parameters(self.network)
        job.trace.add(self.network.assignment, self._temperature())

    def make_loss(self) -> nn.Module:
        """Return the loss over all K x T heads."""
        return BranchedLoss(self.job.layout, self.job.losses)

    @property
    def note(self) -> str:
        """The entropy, and how many tasks have moved."""
        return self.job.trace.note

    @property
    def step(self) -> int:
        """How many steps are done, of `steps`."""
        return len(self.history) * self.batches + self.batch

    def optimizers_of(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the network's optimizer and, where the assignment is learned, an Adam for theta."""
        assert isinstance(network, AssignedNet)
        theta = network.assignment.theta
        found = [self.config.build_optimizer(network.net)]
        if theta.requires_grad:
            found.append(torch.optim.Adam([theta], lr=self.job.plan.assignment_lr))
        return found

    def loss_of(self, ids: Tensor, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Draw an assignment and return the objective; the task losses are those of the most probable branches."""
        assignment = self.network.assignment
        with span("forward"), autocast(self.config):
            outputs = self.network(inputs)
        with span("assignment"):
            shares = self._draw(len(ids))
        with span("loss"):
            total = self._with_terms(self.loss(outputs, targets, shares))
        labels = assignment.labels()
        if self.recorder is not None:
            with span("map"):
                self._record(self.recorder, outputs, labels, targets, ids)
        task_losses: Any = self.loss.task_losses
        return total, task_losses[self.task, labels]

    def loss_of_nothing(self, zero: Tensor) -> Tensor:
        """Return the terms of the assignment: every rank draws the same, with rows or without."""
        self._draw(0)
        return self._with_terms(zero)

    def _draw(self, rows: int) -> Tensor:
        """Draw the step's assignment; of several ranks' rows, for those of this one, weighted by its part of them."""
        self._rest_or_learn()
        first = 0 if self.ranked is None else self.ranked.first_row
        shares = self.network.assignment.sample(self._temperature(), rows=rows, first_row=first)
        return shares if self.ranked is None else shares * self.ranked.factors()[:, None]

    def _with_terms(self, total: Tensor) -> Tensor:
        assignment = self.network.assignment
        if self.plan.entropy_weight:
            total = total + self.plan.entropy_weight * assignment.entropy()
        if self.plan.balance_weight and assignment.theta.requires_grad:
            total = total + self.plan.balance_weight * assignment.num_tasks * assignment.imbalance()
        return total

    def after_epoch(self, epoch: int) -> None:
        """Note the assignment; drop branches that no task can move to any more."""
        super().after_epoch(epoch)
        self.job.trace.add(self.network.assignment, self._temperature())
        if self.plan.drop_branches and epoch < self.job.epochs:
            self._drop(epoch)

    def _rest_or_learn(self) -> None:
        """Hold theta still while the branches are only starting to tell the tasks apart."""
        if len(self.optimizers) > 1:
            resting = self.step < self.plan.assignment_warmup * self.steps
            self.optimizers[1].param_groups[0]["lr"] = 0.0 if resting else self.plan.assignment_lr

    def _temperature(self) -> float:
        return self.job.plan.temperature.at(self.step / self.steps)

    def _record(self, recorder: MultiTaskLoss, outputs: Any, labels: Tensor, targets: Any, ids: Tensor) -> None:
        if not isinstance(outputs, Tensor):
            raise InvalidArgumentError("record must be False where heads are not linear; got True")
        with torch.no_grad():
            recorder(outputs[labels[self.task_of_column], :, self.column].T, targets, ids)

    def _drop(self, epoch: int) -> None:
        """Drop a branch if no task's theta can still grow past its best one: Adam moves an entry by about lr a step."""
        assignment, net = self.network.assignment, self.network.net
        if not assignment.theta.requires_grad or net.num_branches == 1:
            return
        theta = assignment.theta.detach()
        reach = 2 * self.plan.assignment_lr * (self.steps - self.step)  # one entry rises while the other falls
        within: list[bool] = (theta.amax(1, keepdim=True) - theta <= reach).any(0).tolist()
        keep = [k for k, stays in enumerate(within) if stays]
        if len(keep) == len(within):
            return
        for k, number in enumerate(self.job.trace.numbers(assignment)):
            if not within[k]:
                self.job.trace.dropped[number] = epoch
        net.drop_branches(keep, self.optimizers[0])
        assignment.drop(keep, self.optimizers[1])

    def keep_if_best(self, record: EpochRecord) -> None:
        """Keep a copy of the network if no epoch before was better; a copy, since branches may be dropped later.

        An epoch after which nothing has been chosen does not count, unless it is the last: with equal logits every task
        is on the first branch.
        """
        score = -math.inf if record.val_score is None else record.val_score
        if not self.config.keep_best or not score > self.best.score:
            return
        theta = self.network.assignment.theta.detach()
        undecided = theta.shape[1] > 1 and bool((theta == theta[:, :1]).all())
        if not undecided or record.epoch == self.job.epochs:
            self.best = Best(score, record.epoch)
            self.best_network = copy_of(self.network)

    def best_state(self) -> dict[str, Any]:
        """Return what is kept of the best epoch, for a checkpoint."""
        best = self.best_network if isinstance(self.best_network, AssignedNet) else None
        return {
            "score": self.best.score,
            "epoch": self.best.epoch,
            "branches": None if best is None else list(best.net.branch_ids),
            "network": None if best is None else dict(best.state_dict()),
        }

    def load_best(self, state: dict[str, Any]) -> None:
        """Take what :meth:`best_state` returned."""
        self.best = Best(state["score"], state["epoch"])
        best, self._whole = self._whole, None
        if state["network"] is None or best is None:
            return
        _keep_branches(best, state["branches"])
        load_weights(best, state["network"])
        self.best_network = best.train(self.network.training)

    def own_state(self) -> dict[str, Any]:
        """Return the branches that are left and the trace."""
        trace = {one.name: getattr(self.job.trace, one.name) for one in fields(AssignmentTrace)}
        trace["probabilities"] = np.stack(trace["probabilities"])  # one tensor in the file, not one an epoch
        return {"branches": list(self.network.net.branch_ids), "trace": trace}

    def load_own(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` returned; branches that were dropped are dropped."""
        for name, value in state["trace"].items():
            setattr(self.job.trace, name, list(value) if name == "probabilities" else value)
        self._whole = copy_of(self.network)
        _keep_branches(self.network, state["branches"], self.optimizers)

    def figures(self) -> dict[str, Any]:
        """Return entropy, temperature and how many tasks moved."""
        trace = self.job.trace
        return {"entropy": trace.entropies[-1], "temperature": trace.temperatures[-1], "moved": trace.moved[-1]}

    def restore_best(self) -> int | None:
        """Go back to the kept network, if any; return its epoch."""
        if isinstance(self.best_network, AssignedNet):
            self.network = self.best_network
            self.job.trace.forget_after(self.best.epoch or 0)
        return self.best.epoch


def _keep_branches(
    network: AssignedNet, branches: Sequence[int], optimizers: Sequence[torch.optim.Optimizer] = ()
) -> None:
    """Drop all branches but those of these numbers, from the optimizers of network and assignment too."""
    there = list(network.net.branch_ids)
    if not set(branches) <= set(there):
        raise InvalidArgumentError(f"resume must continue with the same branches; {list(branches)} are not of {there}")
    if len(branches) < len(there):
        keep = [there.index(branch) for branch in branches]
        of_net, of_theta, *_ = [*optimizers, None, None]
        network.net.drop_branches(keep, of_net)
        network.assignment.drop(keep, of_theta)


@dataclass(frozen=True)
class FinetuneJob(Job):
    """A pruned network to train further."""

    plan: DMTGPlan = field(default_factory=DMTGPlan)


class OneBranchRun(Run):
    """Trains a network of one output a task on the sum of the tasks' losses, those that DMTG was given among them."""

    def __init__(self, job: Job, config: TrainConfig, train: BatchSource, val: BatchSource | None) -> None:
        super().__init__(job, config, train, val)
        self.ones = torch.ones(job.layout.num_tasks, 1, device=config.torch_device)

    def make_loss(self) -> nn.Module:
        """Return the loss of one branch that serves all tasks."""
        return BranchedLoss(self.job.layout, self.job.losses)

    def loss_of(self, ids: Tensor, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return the sum of the task losses, and these."""
        with span("forward"), autocast(self.config):
            logits = self.network(with_dtype(inputs, self.input_dtype))
        ones = self.ones if self.ranked is None else self.ranked.factors()[:, None]
        with span("loss"):
            total = self.loss(checked_logits(logits, len(ids), self.job.layout)[None], targets, ones)
        task_losses: Any = self.loss.task_losses
        return total, task_losses[:, 0]


class FinetuneRun(OneBranchRun):
    """Trains a :class:`GroupedNet`; the trunk may be frozen."""

    job: FinetuneJob
    network: GroupedNet

    def optimizers_of(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Freeze the trunk where asked for, then return the optimizer."""
        assert isinstance(network, GroupedNet)
        if self.job.plan.freeze_trunk and network.trunk is not None:
            network.trunk.requires_grad_(False)
        return super().optimizers_of(network)

    def before_epoch(self, epoch: int) -> None:
        """Keep a frozen trunk in eval mode: its running statistics stay as they are."""
        super().before_epoch(epoch)
        if self.job.plan.freeze_trunk and self.network.trunk is not None:
            self.network.trunk.eval()
