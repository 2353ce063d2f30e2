"""K networks with task weights of their own, trained together as one: the specialised networks of STG.

They stand side by side as one network on K x T tasks, task t of network k having the weight ``w[t, k]``. So the common
loop, its loss, its checkpoints and its scores serve them as they are; histories and weights are told apart at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pymtg.nets._arrange import worthwhile
from pymtg.nets._copying import copy_of
from pymtg.nets._side_by_side import SideBySide
from pymtg.nets._stacked import CannotStackError
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import Batch, BatchSource
from pymtg.trainers._loop import Trained, train_network
from pymtg.trainers._monitor import weighted_score
from pymtg.trainers._progress import Reporter
from pymtg.trainers._run import Best, Job, Run, checked_network, non_finite
from pymtg.trainers._seeding import seeded, stage_seed
from pymtg.trainers._stacked_optimizer import stacked_optimizer
from pymtg.trainers.config import TrainConfig
from pymtg.trainers.results import EpochRecord, StageResult

if TYPE_CHECKING:
    from pymtg.trainers._stages import Setting

__all__ = ["can_stack", "check_together", "pays_together", "train_together"]


def train_together(
    setting: Setting,
    weights: npt.NDArray[np.float64],
    *,
    epochs: int,
    start: nn.Module | None = None,
    name: str = "group",
    members: Sequence[int] | None = None,
) -> list[Trained]:
    """Train K networks at once, with task weights ``[T, K]``; each as :meth:`Setting.specialised` would train it.

    `members` are their numbers, 0..K-1 if not given.

    Each has the initial weights, the order of samples (where ``setting.train.orders_apart``), the best epoch, the
    history and the name that it would have alone; seconds are shared out evenly.

    Raises
    ------
    CannotStackError
        If the networks or the optimizer have no form in which they run as one.
    NonFiniteLossError
        If a loss or a weight became NaN or infinite; names the network.
    """
    _check_precision(setting.config)
    layout, networks = setting.layout, weights.shape[1]
    members = range(networks) if members is None else members
    job = TogetherJob(
        name=f"{name}s {members[0]}-{members[-1]}",
        build=lambda: SideBySide([_network(setting, seed, start) for seed in job.seeds]),
        layout=_repeated(layout, networks),
        seed=stage_seed(setting.seed, "group", members[0]),
        epochs=epochs,
        weights=torch.from_numpy(weights.T.astype(np.float32).flatten()),
        ranks=setting.ranks,
        single=layout,
        names=tuple(f"{name} {k}" for k in members),
        seeds=tuple(stage_seed(setting.seed, "group", k) for k in members),
    )
    trained = train_network(
        job, setting.train, setting.val, setting.config, setting.reporter, kind=TogetherRun, keeper=setting.keeper
    )
    return [_taken_out(trained, job, k) for k in range(networks)]


def check_together(setting: Setting) -> None:
    """Raise CannotStackError, before anything is trained, if such networks cannot be trained together."""
    _check_precision(setting.config)
    network = _network(setting, stage_seed(setting.seed, "group"), None)
    stacked_optimizer(_pair(network), setting.config)


def can_stack(setting: Setting, members: Sequence[int], start: nn.Module | None) -> bool:
    """Tell whether the networks of these numbers have a form in which they run as one."""
    try:
        SideBySide([_network(setting, stage_seed(setting.seed, "group", k), start) for k in members])
    except CannotStackError:
        return False
    return True


def pays_together(setting: Setting, network: nn.Module) -> bool:
    """Tell whether training copies of such a network together gives the same results sooner, as far as was measured.

    That is on the CPU, where layers and batches are small (``benchmarks/specialise_together.py``; docs/performance.md,
    "Specialised networks together").
    """
    config = setting.config
    measured = config.torch_device.type == "cpu" and config.amp_dtype is None
    if not (measured and setting.train.orders_apart and _small_steps(network, config.batch_size)):
        return False
    try:
        stacked_optimizer(_pair(network), config)
    except CannotStackError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class TogetherJob(Job):
    """K networks to train as one; `layout` has the tasks of each, one network after the other, `single` those of one.

    `names` and `seeds` are those that each would have alone.
    """

    single: TaskLayout
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    best_epochs: list[int | None] = field(default_factory=list)
    """Filled at the end: per network the epoch whose weights were kept."""

    def part(self, values: Sequence[float], k: int) -> tuple[float, ...]:
        """Return network k's T of K x T values."""
        return tuple(values[k * self.single.num_tasks : (k + 1) * self.single.num_tasks])


class TogetherRun(Run):
    """Trains K networks as one; each has its own order, its own best epoch, and is told of on its own."""

    job: TogetherJob
    network: SideBySide

    def __init__(self, job: TogetherJob, config: TrainConfig, train: BatchSource, val: BatchSource | None) -> None:
        super().__init__(job, config, train, val)
        self.networks = len(job.seeds)
        self.order = _Orders(job.seeds)
        self.order_start = self.order.get_state()
        self.bests = [Best() for _ in job.seeds]
        self._histories: list[list[EpochRecord]] = [[] for _ in job.seeds]

    def optimizers_of(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the one optimizer of the stacked parameters."""
        assert isinstance(network, SideBySide)
        return [stacked_optimizer(network, self.config)]

    def batches_left(self) -> Iterator[Batch]:
        """Yield ids ``[B, K]``, inputs ``[K, B, ...]`` and targets ``[B, K * T]``."""
        for ids, inputs, targets in self.train.shuffled_apart(self.order.each, self.batch, self.job.ranks):
            yield ids, inputs, targets.transpose(0, 1).flatten(1)

    def scores_of(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, ...]:
        """Return the K x T monitored scores of predictions [N, K * C] for targets [N, T]."""
        return super().scores_of(logits, targets.repeat(1, self.networks))

    def history_of(self, k: int) -> list[EpochRecord]:
        """Return the history of one network; the seconds of an epoch are shared out evenly."""
        own = self._histories[k]
        own.extend(_record_of(record, self.job, self.weights, k) for record in self.history[len(own) :])
        return own

    def report(self, reporter: Reporter) -> None:
        """Tell of the last epoch of each network."""
        for k, name in enumerate(self.job.names):
            history = self.history_of(k)
            reporter.epoch(name, history, self.job.epochs)
            if self.config.on_epoch_end is not None:
                self.config.on_epoch_end(name, history[-1])

    def non_finite(self, epoch: int, losses: Sequence[float]) -> str:
        """Name the first network that has such a loss or weight."""
        finite = self.network.finite()
        wrong = (k for k, own in enumerate(finite) if not (own and np.isfinite(self.job.part(losses, k)).all()))
        k = next(wrong, 0)
        return non_finite(self.job.names[k], self.job.single, epoch, self.job.part(losses, k))

    def keep_if_best(self, record: EpochRecord) -> None:
        """Keep the weights of each network for which no epoch before was better."""
        if not self.config.keep_best:
            return
        for k, best in enumerate(self.bests):
            score = self.history_of(k)[-1].val_score
            if score is not None and score > best.score:
                self.bests[k] = Best(score, record.epoch, self.network.state_of(k))

    def best_state(self) -> dict[str, Any]:
        """Return what is kept of each network's best epoch, for a checkpoint."""
        return {"each": [{"score": b.score, "epoch": b.epoch, "network": b.state} for b in self.bests]}

    def load_best(self, state: dict[str, Any]) -> None:
        """Take what :meth:`best_state` returned."""
        device = self.config.torch_device
        for k, best in enumerate(state["each"]):
            kept = {name: value.to(device) for name, value in best["network"].items()}
            self.bests[k] = Best(best["score"], best["epoch"], kept)

    def restore_best(self) -> None:
        """Load the kept weights of each network, if any, and note their epochs."""
        for k, best in enumerate(self.bests):
            if best.epoch is not None:
                self.network.load_state_of(k, best.state)
        self.job.best_epochs[:] = [best.epoch for best in self.bests]

    def own_state(self) -> dict[str, Any]:
        """Return the epochs of the kept weights, once they are loaded."""
        return {"best_epochs": list(self.job.best_epochs)}

    def load_own(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` returned."""
        self.job.best_epochs[:] = state["best_epochs"]


class _Orders:
    """K generators of the networks' orders, with the state of all as one tensor ``[K, n]``."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.each = [torch.Generator().manual_seed(seed) for seed in seeds]

    def get_state(self) -> torch.Tensor:
        return torch.stack([generator.get_state() for generator in self.each])

    def set_state(self, states: torch.Tensor) -> None:
        for generator, state in zip(self.each, states, strict=True):
            generator.set_state(state.clone())


def _network(setting: Setting, seed: int, start: nn.Module | None) -> nn.Module:
    """Return a copy of `start`, or a new network whose weights are drawn as they are drawn for it alone."""
    if start is not None:
        return copy_of(start)
    with seeded(seed, setting.config.torch_device):
        return checked_network(setting.build(setting.layout))


def _pair(network: nn.Module) -> SideBySide:
    return SideBySide([network, copy_of(network)])


def _small_steps(network: nn.Module, batch_size: int) -> bool:
    """Tell whether calls, not products, take a good part of a step: at most 2^25 products in a connected layer."""
    linear = (layer for layer in network.modules() if type(layer) is nn.Linear)
    return worthwhile([network, network]) and all(batch_size * layer.weight.numel() <= 2**25 for layer in linear)


def _check_precision(config: TrainConfig) -> None:
    if config.amp_dtype is torch.float16:
        raise CannotStackError("amp='float16' scales the loss of each by itself")


def _repeated(layout: TaskLayout, networks: int) -> TaskLayout:
    """Return the layout of K networks' tasks, one network after the other."""
    return TaskLayout(
        [f"{k} {name}" for k in range(networks) for name in layout],
        layout.num_classes * networks,
        None if layout.pos_weight is None else layout.pos_weight * networks,
        None if layout.class_weights is None else layout.class_weights * networks,
        layout.kinds * networks,
    )


def _record_of(record: EpochRecord, job: TogetherJob, weights: Sequence[float], k: int) -> EpochRecord:
    """Return what an epoch of all networks says of one."""
    own, losses = job.part(weights, k), job.part(record.task_losses, k)
    scores = None if record.val_task_scores is None else job.part(record.val_task_scores, k)
    return EpochRecord(
        epoch=record.epoch,
        loss=sum(weight * loss for weight, loss in zip(own, losses, strict=True)),
        task_losses=losses,
        val_score=None if scores is None else weighted_score(scores, own),
        val_task_scores=scores,
        seconds=record.seconds / len(job.names),
    )


def _taken_out(trained: Trained, job: TogetherJob, k: int) -> Trained:
    """Return one network and what its training was, as if it had been alone."""
    assert isinstance(trained.network, SideBySide)
    networks, stage = len(job.names), trained.stage
    weights = [] if job.weights is None else job.weights.tolist()
    return Trained(
        trained.network.module(k),
        StageResult(
            name=job.names[k],
            epochs=stage.epochs,
            best_epoch=job.best_epochs[k],
            seconds=stage.seconds / networks,
            parameters=stage.parameters // networks,
            history=tuple(_record_of(record, job, weights, k) for record in stage.history),
        ),
    )
