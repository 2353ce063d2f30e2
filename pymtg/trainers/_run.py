"""One network's training: its state, and what a step and an epoch of it do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pymtg import _faults
from pymtg._ranges import each, span
from pymtg._ranks import Ranks
from pymtg._task_split import TaskLossFunction
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.losses import MultiTaskLoss
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import Batch, BatchSource
from pymtg.trainers._errors import NonFiniteLossError
from pymtg.trainers._monitor import monitored, weighted_score
from pymtg.trainers._predict import autocast, checked_logits, forward_all, weight_dtype, with_dtype
from pymtg.trainers._progress import Reporter
from pymtg.trainers._ranked_steps import RankedSteps
from pymtg.trainers.config import TrainConfig
from pymtg.trainers.results import EpochRecord

__all__ = ["Best", "Job", "Run", "checked_network", "non_finite"]


@dataclass(frozen=True)
class Job:
    """One network to train: on which tasks, with which weights, from which start."""

    name: str
    build: Callable[[], nn.Module]
    layout: TaskLayout
    seed: int
    epochs: int
    weights: torch.Tensor | None = None
    data_map: DataMap | None = None
    snapshot_epochs: tuple[int, ...] = ()
    losses: Mapping[str, str | TaskLossFunction] | None = None
    ranks: Ranks | None = None
    """Those that train it together; None where this process does alone."""


@dataclass
class Best:
    """The best epoch so far, its score and its weights; none before the first."""

    score: float = -math.inf
    epoch: int | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)


class Run:
    """The state of one training: network, loss, optimizers and what was seen so far.

    Another sort of training changes what a step computes (:meth:`loss_of`), what is optimised (:meth:`optimizers_of`)
    or what happens around an epoch (:meth:`before_epoch`, :meth:`after_epoch`); the loop stays the same.
    """

    networks = 1
    """How many networks are trained: so many epochs are told of after each."""

    def __init__(self, job: Job, config: TrainConfig, train: BatchSource, val: BatchSource | None) -> None:
        self._clock = self._epoch_clock = time.perf_counter()
        self.job, self.config, self.train, self.val = job, config, train, val
        device = config.torch_device
        self.network = checked_network(job.build()).to(device)
        self.input_dtype = weight_dtype(self.network)
        self.loss = self.make_loss().to(device)
        self.optimizers = self.optimizers_of(self.network)
        self.scheduler = config.build_scheduler(self.optimizers[0])
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp_dtype is torch.float16)
        # of its own: what a model draws does not move the order
        self.order: Any = torch.Generator().manual_seed(job.seed)
        self.weights = [1.0] * job.layout.num_tasks if job.weights is None else job.weights.tolist()
        self.history: list[EpochRecord] = []
        self.best = Best()
        self.batch, self.batches = 0, -(-train.num_samples // config.batch_size)
        """How many batches of the present epoch are done, and of how many."""
        self.sums = torch.zeros(1 + job.layout.num_tasks, device=device)
        self.order_start = self.order.get_state()  # of the generator, before it drew the present epoch's order
        self.ranked = None if job.ranks is None else RankedSteps(self, job.ranks)

    def make_loss(self) -> nn.Module:
        """Return the loss module."""
        return MultiTaskLoss(self.job.layout, data_map=self.job.data_map, task_weights=self.job.weights)

    def optimizers_of(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the optimizers; the scheduler, if any, goes with the first."""
        return [self.config.build_optimizer(network)]

    def loss_of(self, ids: torch.Tensor, inputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch's total loss, for the backward pass, and the T task losses, detached."""
        with span("forward"), autocast(self.config):
            logits = self.network(with_dtype(inputs, self.input_dtype))
        if self.ranked is not None:
            factors = self.ranked.factors()
            self.loss.task_weights = factors if self.job.weights is None else factors * self.job.weights.to(factors)
        with span("loss"):
            total = self.loss(checked_logits(logits, len(ids), self.job.layout), targets, ids)
        task_losses: Any = self.loss.task_losses
        return total, task_losses

    def batches_left(self) -> Iterator[Batch]:
        """Yield the batches of the present epoch that are not done."""
        return self.train.shuffled(self.order, self.batch, self.job.ranks)

    def loss_of_nothing(self, zero: torch.Tensor) -> torch.Tensor:
        """Return the total of a batch of which this rank has no rows: `zero`, on which all parameters hang."""
        return zero

    @property
    def note(self) -> str:
        """What the progress bar shows of the last epoch beside its loss."""
        return ""

    def before_epoch(self, epoch: int) -> None:
        """Do what an epoch needs before its first batch."""
        self.network.train()
        self.loss.train()

    def after_epoch(self, epoch: int) -> None:
        """Do what follows an epoch's last step, before it is validated."""
        if self.ranked is not None:
            self.ranked.settle()
        if self.job.data_map is not None and epoch in self.job.snapshot_epochs:
            with span("snapshot"):
                self._snapshot(self.job.data_map, epoch)

    def _snapshot(self, data_map: DataMap, epoch: int) -> None:
        if self.ranked is not None and self.ranked.map is not None:
            self.ranked.map.snapshot(epoch)
        else:
            data_map.snapshot(epoch)

    def epoch(self, epoch: int, pause: Callable[[Run], None] | None = None) -> EpochRecord:
        """Train one epoch, or what is left of it, validate, and record both; `pause` is called between batches."""
        if not self.batch:
            self._epoch_clock = time.perf_counter()
        self.before_epoch(epoch)
        loss, task_losses = self._read(epoch, self._train_epoch(pause))
        self.after_epoch(epoch)
        if self.scheduler is not None:
            self.scheduler.step()
        val = self._validate()
        record = EpochRecord(
            epoch=epoch,
            loss=loss,
            task_losses=task_losses,
            val_score=None if val is None else weighted_score(val, self.weights),
            val_task_scores=val,
            seconds=self.epoch_seconds,
        )
        self.batch = 0
        self.history.append(record)
        self.keep_if_best(record)
        return record

    def complete(self) -> None:
        """Do what ends the training: merge the ranks' maps."""
        if self.ranked is not None and self.ranked.map is not None:
            self.ranked.map.finish()

    def _validate(self) -> tuple[float, ...] | None:
        if self.ranked is not None:
            return self.ranked.scores()
        if self.val is None:
            return None
        with span("validation"):
            logits, targets = forward_all(self.network, self.val, self.job.layout, self.config)
            return self.scores_of(logits, targets)

    def scores_of(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, ...]:
        """Return the T monitored scores of predictions [N, C]; NaN where a task's is not defined."""
        return monitored(self.config.monitor, logits, targets, self.job.layout, self.job.losses)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without those in which it was stopped."""
        return time.perf_counter() - self._clock

    @property
    def epoch_seconds(self) -> float:
        """Seconds since the present epoch began, or the last one where none has."""
        return time.perf_counter() - self._epoch_clock

    def resume_clocks(self, seconds: float, epoch_seconds: float) -> None:
        """Go on counting from these figures."""
        now = time.perf_counter()
        self._clock, self._epoch_clock = now - seconds, now - epoch_seconds

    def _train_epoch(self, pause: Callable[[Run], None] | None) -> torch.Tensor:
        """Return [sum of the weights' sums, total loss, T task losses], the losses averaged over the epoch's rows."""
        sums = self.sums
        if not self.batch:
            sums.zero_()
            self.order_start = self.order.get_state()
        for ids, inputs, targets in each("data", self.batches_left()):
            total, task_losses, weight = self._losses(ids, inputs, targets)
            with span("backward"):
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
                if self.ranked is not None:
                    self.ranked.after_backward()
            with span("optimizer"):
                for optimizer in self.optimizers:
                    self.scaler.step(optimizer)
                self.scaler.update()
            sums[0].add_(total.detach(), alpha=weight)
            sums[1:].add_(task_losses, alpha=weight)
            self.batch += 1
            if pause is not None and self.batch < self.batches:
                pause(self)
        with torch.no_grad():  # finite if all weights are
            learned = (p for p in self.network.parameters() if p.requires_grad)  # what is frozen may hold infinities
            state = torch.stack([p.sum().float() for p in learned]).sum()
        if self.ranked is not None:
            sums = self.ranked.total(sums)
        return torch.cat([state[None], sums / self.train.num_samples])

    def _losses(self, ids: torch.Tensor, inputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return the total to go back from, the task losses, and by what both count in the epoch's means."""
        if self.ranked is not None:
            return self.ranked.losses(ids, inputs, targets)
        return *self.loss_of(ids, inputs, targets), len(ids)

    def _read(self, epoch: int, sums: torch.Tensor) -> tuple[float, tuple[float, ...]]:
        """Bring an epoch's training figures to the host, the only such read, and check them."""
        _faults.check(sums.device)  # what is wrong with labels or ids says more than the NaN that it leads to
        figures: list[float] = sums.tolist()
        state, loss, *task_losses = figures
        if not all(map(math.isfinite, (state, loss, *task_losses))):
            raise NonFiniteLossError(self.non_finite(epoch, task_losses))
        return loss, tuple(task_losses)

    def non_finite(self, epoch: int, losses: Sequence[float]) -> str:
        """Return in words what became NaN or infinite, given the task losses; a weight where these are finite."""
        return non_finite(self.job.name, self.job.layout, epoch, losses)

    def report(self, reporter: Reporter) -> None:
        """Tell of the last epoch: on the progress bar, in the log, and to the caller."""
        job, record = self.job, self.history[-1]
        reporter.epoch(job.name, self.history, job.epochs, self.note, self.figures())
        if self.config.on_epoch_end is not None:
            self.config.on_epoch_end(job.name, record)

    def keep_if_best(self, record: EpochRecord) -> None:
        """Keep the weights if no epoch before was better."""
        score = record.val_score
        if not self.config.keep_best or score is None or not score > self.best.score:
            return
        state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.best = Best(score, record.epoch, state)

    def best_state(self) -> dict[str, Any]:
        """Return what is kept of the best epoch, for a checkpoint."""
        return {"score": self.best.score, "epoch": self.best.epoch, "network": self.best.state}

    def load_best(self, state: dict[str, Any]) -> None:
        """Take what :meth:`best_state` returned."""
        device = self.config.torch_device
        kept = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in state["network"].items()}
        self.best = Best(state["score"], state["epoch"], kept)

    def own_state(self) -> dict[str, Any]:
        """Return what this sort of run adds to a checkpoint."""
        return {}

    def load_own(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` returned, before the weights are loaded."""

    def figures(self) -> dict[str, Any]:
        """Return what this sort of run adds to the log of an epoch, JSON-ready."""
        return {}

    def restore_best(self) -> int | None:
        """Load the kept weights, if any; return their epoch."""
        if self.best.epoch is not None:
            self.network.load_state_dict(self.best.state)
        return self.best.epoch


def non_finite(stage: str, layout: TaskLayout, epoch: int, losses: Sequence[float]) -> str:
    """Return the message of a NonFiniteLossError."""
    names = [name for name, value in zip(layout.names, losses, strict=True) if not math.isfinite(value)]
    shown = ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    what = f"the loss of {shown}" if names else "a weight of the network"
    return (
        f"stage {stage!r}, epoch {epoch}: {what} became NaN or infinite; "
        "look for such values in the inputs, or train with a lower lr"
    )


def checked_network(network: object) -> nn.Module:
    """Return what a model factory made if it is a module with something to train; typed errors for anything else."""
    if not isinstance(network, nn.Module):
        raise InvalidTypeError(f"model must return a torch.nn.Module for a layout; got {type(network).__name__}")
    if not any(p.requires_grad for p in network.parameters()):
        raise InvalidArgumentError("model must return a module with parameters to train; got one without")
    return network
