"""All that one network's training consists of between two batches, as nested values, and back into a fresh run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError
from pymtg.trainers._ranked_map import RankedMap
from pymtg.trainers._seeding import random_states, set_random_states
from pymtg.trainers.results import EpochRecord, StageResult

if TYPE_CHECKING:
    from pymtg.trainers._run import Run

__all__ = ["load_result", "load_run", "load_weights", "result_state", "run_state", "stage_of", "stage_state"]


def run_state(run: Run) -> dict[str, Any]:
    """Return the state of a run between two batches or two epochs; tensors are the run's own, not copies."""
    return {
        "name": run.job.name,
        "seconds": run.seconds,
        "epoch_seconds": run.epoch_seconds,
        "batch": run.batch,
        "sums": run.sums if run.ranked is None else run.ranked.total(run.sums),
        "order": run.order_start if run.batch else run.order.get_state(),
        "random": random_states(run.config.torch_device),
        "ranks": [] if run.ranked is None else run.ranked.random_states(),
        "history": _history_state(run.history),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "best": run.best_state(),
        **_learned(run),
        "data_map": _map_state(run),
    }


def load_run(run: Run, state: dict[str, Any]) -> None:
    """Bring a run that has just begun to where `state` was taken, the global random states included.

    Raises
    ------
    InvalidArgumentError
        If the run is of another stage, network or optimizer than the one whose state it was.
    """
    _load_learned(run, state, None if run.ranked is None else run.ranked.map)
    run.load_best(state["best"])
    for optimizer, saved in zip(run.optimizers, _checked_optimizers(run, state["optimizers"]), strict=True):
        _load(optimizer.load_state_dict, saved, "optimizer")
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    run.scaler.load_state_dict(state["scaler"])
    run.history = _history(state["history"])
    run.batch = state["batch"]
    run.sums = state["sums"].to(run.sums.device)
    if run.ranked is not None:
        run.sums = run.ranked.load_sums(run.sums)
    run.order.set_state(state["order"])
    run.order_start = state["order"]
    run.resume_clocks(state["seconds"], state["epoch_seconds"])
    if run.ranked is None:
        set_random_states(state["random"], run.config.torch_device)
    else:
        run.ranked.load_random_states([state["random"], *state.get("ranks", [])])


def result_state(run: Run, stage: StageResult) -> dict[str, Any]:
    """Return what later stages and the caller need of a run that is finished."""
    return stage_state(stage) | {"name": run.job.name} | _learned(run)


def stage_state(stage: StageResult) -> dict[str, Any]:
    """Return the record of a finished stage as nested values."""
    return {
        "name": stage.name,
        "history": _history_state(stage.history),
        "best_epoch": stage.best_epoch,
        "seconds": stage.seconds,
        "parameters": stage.parameters,
    }


def load_result(run: Run, state: dict[str, Any]) -> StageResult:
    """Give a run that has just begun the end that `state` tells of; InvalidArgumentError as in :func:`load_run`."""
    _load_learned(run, state)
    run.before_epoch(run.job.epochs)  # for the modes in which training leaves modules
    return stage_of(state)


def stage_of(state: dict[str, Any]) -> StageResult:
    """Return the record that :func:`stage_state` made nested values of."""
    return StageResult(
        name=state["name"],
        epochs=len(state["history"]["loss"]),
        best_epoch=state["best_epoch"],
        seconds=state["seconds"],
        parameters=state["parameters"],
        history=tuple(_history(state["history"])),
    )


def load_weights(network: torch.nn.Module, state: dict[str, Any]) -> None:
    """Load a network's state; InvalidArgumentError if it is another network's."""
    _load(network.load_state_dict, state, "network")


def _learned(run: Run) -> dict[str, Any]:
    data_map = run.job.data_map
    return {
        "networks": run.networks,
        "network": dict(run.network.state_dict()),
        "own": run.own_state(),
        "data_map": None if data_map is None else data_map.state_dict(),
    }


def _map_state(run: Run) -> dict[str, Any] | None:
    """Return the state of the map that is at work: of the ranks' maps together where there are several."""
    data_map: RankedMap | DataMap | None = run.job.data_map if run.ranked is None else run.ranked.map
    if data_map is None:
        return None
    return data_map.state() if isinstance(data_map, RankedMap) else data_map.state_dict()


def _load_learned(run: Run, state: dict[str, Any], ranked: RankedMap | None = None) -> None:
    if state["name"] != run.job.name:
        raise InvalidArgumentError(
            f"resume must continue the same stages; the checkpoint is of {state['name']!r}, not {run.job.name!r}"
        )
    run.load_own(state["own"])  # first: it decides on shapes
    load_weights(run.network, state["network"])
    if run.job.data_map is not None:
        load = run.job.data_map.load_state_dict if ranked is None else ranked.load
        _load(load, state["data_map"], "data map")


def _load(load: Any, state: Any, what: str) -> None:
    try:
        load(state)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgumentError(f"resume must continue with the same {what}; {reason}") from error


def _checked_optimizers(run: Run, saved: Sequence[Any]) -> Sequence[Any]:
    if len(saved) != len(run.optimizers):
        raise InvalidArgumentError(
            f"resume must continue with {len(saved)} optimizers, as it began; got {len(run.optimizers)}"
        )
    return saved


def _history_state(history: Sequence[EpochRecord]) -> dict[str, Any]:
    scored = bool(history) and history[0].val_task_scores is not None
    return {
        "loss": np.array([record.loss for record in history]),
        "task_losses": np.array([record.task_losses for record in history]),
        "seconds": np.array([record.seconds for record in history]),
        "val_score": np.array([record.val_score for record in history]) if scored else None,
        "val_task_scores": np.array([record.val_task_scores for record in history]) if scored else None,
    }


def _history(state: dict[str, Any]) -> list[EpochRecord]:
    scores, task_scores = state["val_score"], state["val_task_scores"]
    return [
        EpochRecord(
            epoch=i + 1,
            loss=float(state["loss"][i]),
            task_losses=tuple(state["task_losses"][i].tolist()),
            val_score=None if scores is None else float(scores[i]),
            val_task_scores=None if task_scores is None else tuple(task_scores[i].tolist()),
            seconds=float(state["seconds"][i]),
        )
        for i in range(len(state["loss"]))
    ]
