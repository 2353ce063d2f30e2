"""The one training loop: every network of every method goes through :func:`train_network`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from pymtg._ranges import stage as stage_range
from pymtg.trainers._batches import BatchSource
from pymtg.trainers._errors import KeepBestWarning
from pymtg.trainers._keeper import Keeper
from pymtg.trainers._predict import without_autocast
from pymtg.trainers._progress import Reporter
from pymtg.trainers._run import Job, Run
from pymtg.trainers._seeding import seeded
from pymtg.trainers.config import TrainConfig
from pymtg.trainers.results import StageResult

__all__ = ["Trained", "train_network"]


@dataclass(frozen=True)
class Trained:
    """A trained network and the record of its training."""

    network: nn.Module
    stage: StageResult


def train_network(
    job: Job,
    train: BatchSource,
    val: BatchSource | None,
    config: TrainConfig,
    reporter: Reporter,
    kind: type[Run] | None = None,
    keeper: Keeper | None = None,
) -> Trained:
    """Build and train one network, whatever the caller's modes; the caller's random states are left alone.

    `kind` is the sort of run, plain if not given. `keeper` saves it on the way, and restores what it has of it.

    Raises
    ------
    NonFiniteLossError
        If a loss or a weight became NaN or infinite.
    InvalidArgumentError
        If the model's output does not fit the layout.
    """
    keeper = Keeper() if keeper is None else keeper
    device = config.torch_device
    with stage_range(job.name), seeded(job.seed, device), torch.enable_grad(), without_autocast(device):
        run = (Run if kind is None else kind)(job, config, train, val)
        stage = keeper.begin(run)
        reporter.restored(job.name, run.networks * (len(run.history) if stage is None else job.epochs))
        if stage is None:
            with keeper.following(run):
                stage = _trained(run, reporter, keeper)
    return Trained(run.network, stage)


def _trained(run: Run, reporter: Reporter, keeper: Keeper) -> StageResult:
    """Train the epochs that are left."""
    job = run.job
    for epoch in range(len(run.history) + 1, job.epochs + 1):
        run.epoch(epoch, keeper.pause)
        run.report(reporter)
        keeper.epoch_done(run)
    if run.config.keep_best and all(record.val_score is None or math.isnan(record.val_score) for record in run.history):
        warnings.warn(
            "keep_best had nothing to go by in a stage: none of its tasks can be scored on val (one class only, say), "
            "so it ends with the weights of its last epoch",
            KeepBestWarning,
            stacklevel=2,
        )
    best = run.restore_best()
    run.complete()
    stage = StageResult(
        name=job.name,
        epochs=job.epochs,
        best_epoch=best,
        seconds=run.seconds,
        parameters=sum(p.numel() for p in run.network.parameters()),
        history=tuple(run.history),
    )
    keeper.stage_done(run, stage)
    return stage
