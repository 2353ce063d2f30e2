"""What STG is judged against, each trained by the same loop, and so from the same seeds, as STG's own networks.

Every function takes the same arguments: a model factory, the layout, training and test data (a map-style dataset of
(input, targets), or a tuple of arrays), the options of the loop, a seed; and returns a :class:`MethodResult`. They
raise what :meth:`pymtg.STGTrainer.fit` raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import batch_source
from pymtg.trainers._methods import Budget, Runner, needs
from pymtg.trainers._progress import reporting
from pymtg.trainers._seeding import cpu_threads
from pymtg.trainers._stages import Setting
from pymtg.trainers.config import ModelFactory, TrainConfig, check_int
from pymtg.trainers.results import MethodResult

__all__ = ["ensemble", "mtl", "random_groups", "stl"]


def mtl(
    model: ModelFactory,
    layout: TaskLayout,
    train: Any,
    test: Any,
    *,
    val: Any = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MethodResult:
    """Train one network on all tasks with equal weights: bit for bit STG's joint network of the same seed."""
    return _run("mtl", 1, None, model, layout, train, test, val, config, seed, progress)


def stl(
    model: ModelFactory,
    layout: TaskLayout,
    train: Any,
    test: Any,
    *,
    val: Any = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MethodResult:
    """Train T networks, each on one task alone; `model` is called with one-task layouts."""
    return _run("stl", 1, None, model, layout, train, test, val, config, seed, progress)


def ensemble(
    model: ModelFactory,
    layout: TaskLayout,
    train: Any,
    test: Any,
    *,
    num_networks: int = 3,
    val: Any = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MethodResult:
    """Train networks on all tasks from different seeds and average their probabilities; the first one is :func:`mtl`'s.

    With as many networks as STG has groups, prediction costs the same: what it buys without any grouping.
    """
    check_int("num_networks", num_networks, 1)
    return _run("ensemble", num_networks, None, model, layout, train, test, val, config, seed, progress)


def random_groups(
    model: ModelFactory,
    layout: TaskLayout,
    train: Any,
    test: Any,
    *,
    memberships: npt.ArrayLike,
    val: Any = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MethodResult:
    """Train K networks on random groups of the sizes and softness that STG found.

    The rows of `memberships` [T, K] (``groups_.memberships`` of a fitted trainer) are dealt out to the tasks in an
    order drawn from the seed; everything else, the soft combination and the networks' seeds included, is STG's.

    Raises
    ------
    InvalidArgumentError
        Also if the memberships are not [T, K] with rows in 0..1 that sum to 1.
    """
    rows = np.array(memberships, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] != layout.num_tasks or rows.shape[1] < 1:
        raise InvalidArgumentError(f"memberships must be [{layout.num_tasks}, K]; got shape {rows.shape}")
    if not (np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=1e-6)):
        raise InvalidArgumentError("memberships must not be negative and have rows that sum to 1; got others")
    return _run("random_groups", rows.shape[1], rows, model, layout, train, test, val, config, seed, progress)


def _run(
    method: str,
    networks: int,
    memberships: npt.NDArray[np.float64] | None,
    model: ModelFactory,
    layout: TaskLayout,
    train: Any,
    test: Any,
    val: Any,
    config: TrainConfig | None,
    seed: int,
    progress: bool | None,
) -> MethodResult:
    config = TrainConfig() if config is None else config
    with cpu_threads(config.num_threads), reporting(progress) as reporter:
        setting = Setting.of(model, layout, config, seed, train, val, reporter)
        runner = Runner(setting, batch_source(test, layout, config, "test"), memberships=memberships)
        e = config.epochs
        budget = Budget(e, e, e, e, (e,) * networks, (e,) * networks, (e,) * layout.num_tasks, e, e)
        reporter.expect(sum(need.epochs for need in needs(method, budget)))
        return runner.result(method, budget)
