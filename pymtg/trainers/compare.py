"""Compare STG with its baselines: same data, network, options and seeds for every method."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from pymtg.data import TaskData
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout
from pymtg.trainers._compare_keeper import ComparisonKeeper
from pymtg.trainers._compare_seed import Chosen, Compared, Comparing
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._methods import ABLATIONS, METHODS, needs
from pymtg.trainers._monitor import monitor_name
from pymtg.trainers._progress import reporting
from pymtg.trainers._seeding import cpu_threads, seeded
from pymtg.trainers._stages import check_model
from pymtg.trainers._stg_run import STGPlan
from pymtg.trainers.comparison import Comparison, ComparisonView, MethodSummary
from pymtg.trainers.config import ModelFactory, TrainConfig, check_choice, check_int
from pymtg.trainers.results import MethodResult

__all__ = ["ABLATIONS", "METHODS", "VIEWS", "compare", "longest_stage"]

VIEWS = ("fixed", "best", "equal")
DataSource: TypeAlias = "TaskData | Callable[[int], TaskData]"


def compare(
    data: DataSource,
    model: ModelFactory,
    *,
    methods: Sequence[str] = METHODS,
    views: Sequence[str] = VIEWS,
    seeds: Iterable[int] = range(5),
    num_groups: int | str = 3,
    max_epochs: int = 100,
    config: TrainConfig | None = None,
    snapshot_epochs: Sequence[int] | None = None,
    fuzzifier: float = 1.07,
    mode: str = "kmeans-fuzzified",
    n_init: int = 10,
    dmtg_options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | str = 1,
    resume: bool = False,
) -> Comparison:
    """Train and score every method with every seed.

    Parameters
    ----------
    data
        One :class:`pymtg.data.TaskData` for all seeds, or a function from a seed to one (its split, say, drawn by it).
    model
        Factory ``layout -> torch.nn.Module``; STL calls it with one-task layouts. DMTG needs one of
        :class:`pymtg.nets.MultiHeadNet`, whose backbone becomes the branch.
    methods
        Some of :data:`METHODS`: ``"stg_soft"`` and ``"stg_hard"`` (the same networks, fresh starts), ``"stg_joint"``
        (soft, specialised networks that start from the joint one), ``"dmtg"`` (K branches, fresh), ``"dmtg_warm"``
        (every branch starts from the joint network), ``"mtl"``, ``"ensemble"`` (K networks), ``"random_groups"`` (STG's
        memberships dealt out at random), ``"stl"``; and of :data:`ABLATIONS`, which are not among the default ones:
        ``"dmtg_diagonal"`` (task t on branch ``t mod K``) and ``"dmtg_random"``, both with nothing to learn.
    views
        Some of :data:`VIEWS`.
        ``"fixed"``: every network gets `config.epochs`; those of ``"stg_joint"`` and the branches of ``"dmtg_warm"``
        half of it.
        ``"best"``: every network is trained for `max_epochs` and its best validation epoch kept (the monitor is
        `config.monitor`; a specialised network's score weighs the tasks as its loss does). The validation set is the
        data's own, else a fifth of its training set, drawn by the seed and withheld from every method. Snapshots
        stay within the first `config.epochs`.
        ``"equal"``: every method gets ``(1 + K) * config.epochs`` epochs in all, what STG takes, evenly divided among
        its networks (at least one each); random groups and fresh branches need no joint network and get longer training
        instead. An epoch of a branched network counts once for each of its K branches.
    seeds
        The seeds.
    num_groups, snapshot_epochs, fuzzifier, mode, n_init
        As in :class:`pymtg.STGTrainer`.
    dmtg_options
        Of :class:`pymtg.DMTGTrainer`, by name, where they are not the default: `sampling`, `init`, `eps`,
        `assignment_lr`, `assignment_warmup`, `temperature`, `entropy_weight`, `balance_weight`, `drop_branches`.
        Methods and views decide on the rest.
    max_epochs
        For the view ``"best"``; at least `config.epochs`.
    config
        Options of the loop for all methods; `keep_best` is set by the view.
    progress, checkpoint_dir, checkpoint_every
        As in :class:`pymtg.STGTrainer`. Kept are the results of every seed that is finished, and the networks of the
        one at work.
    resume
        Go on from what is in `checkpoint_dir`, or begin where there is nothing. On the CPU the comparison is that of a
        call which was never stopped, but for the seconds. The finished seeds are not trained again, though their data
        is asked for, to see that it is the same.

    Returns
    -------
    Per view and method the means over tasks with standard errors over seeds, and the cost. Networks that several
    methods need are trained once; each method's seconds and epochs count them in full.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For unknown methods or views, no seeds, seeds whose data has other tasks, checkpoints of another comparison
        (with what differs), and what :class:`pymtg.STGTrainer` raises.
    FileFormatError
        If nothing that is kept of the seed at work is good, or it is of another version.
    OSError
        If a checkpoint cannot be written; those before it are whole.
    """
    keeper = ComparisonKeeper(checkpoint_dir, checkpoint_every, resume)
    config = dataclasses.replace(TrainConfig() if config is None else config, keep_best=False)
    chosen = Chosen(
        _checked_names("methods", methods, METHODS + ABLATIONS),
        _checked_names("views", views, VIEWS),
        check_int("max_epochs", max_epochs, 1),
        _checked_dmtg(dmtg_options),
    )
    if "best" in chosen.views and chosen.max_epochs < config.epochs:
        raise InvalidArgumentError(f"max_epochs must be at least config.epochs ({config.epochs}); got {max_epochs}")
    seeds = _checked_seeds(seeds)
    results: dict[str, dict[str, list[MethodResult]]] = {view: {m: [] for m in chosen.methods} for view in chosen.views}
    names: set[tuple[str, ...]] = set()
    with cpu_threads(config.num_threads), reporting(progress) as reporter, keeper.named():
        for position, seed in enumerate(seeds):
            part = _task_data(data, seed)
            names.add(part.layout.names)
            if len(names) > 1:
                raise InvalidArgumentError(f"data must have the same tasks for every seed; seed {seed} has others")
            plan = STGPlan.checked(
                part.layout.num_tasks,
                num_groups=num_groups,
                epochs=config.epochs,
                snapshot_epochs=snapshot_epochs,
                fuzzifier=fuzzifier,
                mode=mode,
                n_init=n_init,
            )
            if position == 0:
                _check_branch(model, part.layout, chosen.methods)
            reporter.prefix = f"seed {seed}: "
            DMTGPlan.checked(part.layout, **chosen.dmtg_options)
            comparing = Comparing(model, chosen, plan, config, reporter)
            epochs = comparing.epochs(part.layout.num_tasks)
            if position == 0:
                reporter.expect(len(seeds) * epochs)
            for view, method, result in _kept(keeper, comparing, part, position, seeds, epochs):
                results[view][method].append(result)
    return _collected(part.name, seeds, results, chosen, plan, config, monitor_name(config.monitor, part.layout))


def _kept(
    keeper: ComparisonKeeper, comparing: Comparing, data: TaskData, position: int, seeds: tuple[int, ...], epochs: int
) -> list[Compared]:
    """Return the results of a seed: those that are kept, or else train it."""
    seed = seeds[position]
    own = {} if keeper.folder is None else comparing.described(data, seed, seeds)
    found = keeper.finished(position, own)
    if found is None:
        return keeper.train(position, own, lambda networks: comparing.results(data, seed, networks))
    comparing.reporter.restored("kept", epochs)
    return found


def _check_branch(model: ModelFactory, layout: TaskLayout, methods: Sequence[str]) -> None:
    """Raise InvalidTypeError where DMTG cannot take its branches from the model: before hours of other methods."""
    check_model(model, layout)
    if not any(method.startswith("dmtg") for method in methods):
        return
    with seeded(0, torch.device("cpu")):
        made = model(layout)
    if not isinstance(made, MultiHeadNet):
        raise InvalidTypeError(
            "model must make a pymtg.nets.MultiHeadNet for DMTG, whose branches are its backbones, or methods leave "
            f"DMTG out; it made a {type(made).__name__}"
        )


def _task_data(data: DataSource, seed: int) -> TaskData:
    part = data if isinstance(data, TaskData) else data(seed) if callable(data) else None
    if not isinstance(part, TaskData):
        raise InvalidTypeError(f"data must be a TaskData or a function from a seed to one; got {type(data).__name__}")
    return part


def longest_stage(
    methods: Sequence[str],
    views: Sequence[str],
    epochs: int,
    max_epochs: int,
    num_groups: int | str,
    num_tasks: int,
) -> int:
    """Return how many epochs the longest stage of such a comparison has, at most."""
    chosen = Chosen(tuple(methods), tuple(views), max_epochs, {})
    # "auto" is decided by the maps; a method's stages only get longer, or only shorter, with every group more
    groups = (num_groups,) if isinstance(num_groups, int) else (2, num_tasks)
    budgets = [chosen.budget(view, epochs, k, num_tasks) for view in views for k in groups]
    return max(need.epochs for budget in budgets for method in methods for need in needs(method, budget))


def _checked_names(argument: str, names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidTypeError(f"{argument} must be a sequence of names; got the string {names!r}")
    chosen = tuple(dict.fromkeys(check_choice(argument, name, known) for name in names))
    if not chosen:
        raise InvalidArgumentError(f"{argument} must name at least one of {', '.join(known)}; got none")
    return chosen


def _checked_dmtg(options: Mapping[str, Any] | None) -> dict[str, Any]:
    known = (
        "sampling",
        "init",
        "eps",
        "assignment_lr",
        "assignment_warmup",
        "temperature",
        "entropy_weight",
        "balance_weight",
        "drop_branches",
    )
    for name in options or {}:
        check_choice("dmtg_options", name, known)
    return dict(options or {})


def _checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    checked = tuple(check_int("seeds", seed, 0) for seed in seeds)
    if not checked or len(set(checked)) != len(checked):
        raise InvalidArgumentError(f"seeds must be different and at least one; got {list(checked)}")
    return checked


def _collected(
    name: str,
    seeds: tuple[int, ...],
    results: Mapping[str, Mapping[str, list[MethodResult]]],
    chosen: Chosen,
    plan: STGPlan,
    config: TrainConfig,
    monitor: str,
) -> Comparison:
    titles = {
        "fixed": f"{config.epochs} epochs a network",
        "best": f"best validation epoch within {chosen.max_epochs}, by {monitor.replace('_', ' ')}",
        "equal": "equal total epochs",
    }
    views = {
        view: ComparisonView(view, titles[view], {m: MethodSummary.of(tuple(rs)) for m, rs in methods.items()})
        for view, methods in results.items()
    }
    settings = {
        **dataclasses.asdict(plan),
        "dmtg_options": {name: str(value) for name, value in chosen.dmtg_options.items()},
        "max_epochs": chosen.max_epochs,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "monitor": monitor,
    }
    del settings["init"], settings["specialised_epochs"]  # the methods say which start, the views how long
    return Comparison(name, seeds, plan.num_groups, views, settings)
