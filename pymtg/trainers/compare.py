"""Compare STG with its baselines: same data, network, options and seeds for every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, Subset

from pymtg.data import ArrayTasks, TaskData
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import batch_source
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._methods import ABLATIONS, METHODS, Budget, Need, Runner, needs, split_epochs
from pymtg.trainers._monitor import monitor_name
from pymtg.trainers._progress import Reporter, reporting
from pymtg.trainers._seeding import cpu_threads, seeded, stage_seed
from pymtg.trainers._stages import Setting, check_model
from pymtg.trainers._stg_run import STGPlan
from pymtg.trainers.comparison import Comparison, ComparisonView, MethodSummary
from pymtg.trainers.config import ModelFactory, TrainConfig, check_choice, check_int
from pymtg.trainers.results import MethodResult

__all__ = ["ABLATIONS", "METHODS", "VIEWS", "compare", "longest_stage"]

VIEWS = ("fixed", "best", "equal")
DataSource: TypeAlias = "TaskData | Callable[[int], TaskData]"

_HELD_OUT = 0.2  # of the training set, where the best epoch has to be chosen and the data has no validation set


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
    progress
        As in :class:`pymtg.STGTrainer`.

    Returns
    -------
    Per view and method the means over tasks with standard errors over seeds, and the cost. Networks that several
    methods need are trained once; each method's seconds and epochs count them in full.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For unknown methods or views, no seeds, seeds whose data has other tasks, and what
        :class:`pymtg.STGTrainer` raises.
    """
    config = dataclasses.replace(TrainConfig() if config is None else config, keep_best=False)
    chosen = _Chosen(
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
    with cpu_threads(config.num_threads), reporting(progress) as reporter:
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
                _expect(reporter, chosen, plan, part.layout.num_tasks, len(seeds))
            reporter.prefix = f"seed {seed}: "
            DMTGPlan.checked(part.layout, **chosen.dmtg_options)
            for view, method, result in _one_seed(part, model, seed, chosen, plan, config, reporter):
                results[view][method].append(result)
    return _collected(part.name, seeds, results, chosen, plan, config, monitor_name(config.monitor, part.layout))


@dataclasses.dataclass(frozen=True)
class _Chosen:
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


def _one_seed(
    data: TaskData,
    model: ModelFactory,
    seed: int,
    chosen: _Chosen,
    plan: STGPlan,
    config: TrainConfig,
    reporter: Reporter,
) -> Iterable[tuple[str, str, MethodResult]]:
    runners: dict[bool, Runner] = {}
    for view in chosen.views:
        best = view == "best"
        if best not in runners:
            runners[best] = _runner(data, model, seed, best, plan, config, reporter, chosen.dmtg_options)
        runner = runners[best]  # "fixed" and "equal" share one, and so the networks that are the same in both
        groups = plan.num_groups
        if not isinstance(groups, int):
            groups = runner.grouped(chosen.max_epochs if best else plan.epochs).memberships.shape[1]
        budget = chosen.budget(view, plan.epochs, groups, data.layout.num_tasks)
        if any(method.startswith("stg") or method == "random_groups" for method in chosen.methods):
            runner.grouped(budget.joint)  # before any method trains the same joint network without recording
        for method in chosen.methods:
            yield view, method, runner.result(method, budget)


def _runner(
    data: TaskData,
    model: ModelFactory,
    seed: int,
    best: bool,
    plan: STGPlan,
    config: TrainConfig,
    reporter: Reporter,
    dmtg_options: Mapping[str, Any],
) -> Runner:
    train, val = data.train, None
    if best:
        config = dataclasses.replace(config, keep_best=True)
        train, val = (data.train, data.val) if data.val is not None else _hold_out(data.train, seed)
    setting = Setting.of(model, data.layout, config, seed, train, val, reporter)
    test = batch_source(data.test, data.layout, config, "test")
    return Runner(setting, test, plan, dmtg_options=dmtg_options)


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


def _expect(reporter: Reporter, chosen: _Chosen, plan: STGPlan, tasks: int, seeds: int) -> None:
    """Tell the bar how many epochs are coming; unknown while the number of groups is."""
    if not isinstance(plan.num_groups, int):
        return
    distinct: set[tuple[bool, Need]] = set()
    for view in chosen.views:
        budget = chosen.budget(view, plan.epochs, plan.num_groups, tasks)
        for method in chosen.methods:
            distinct |= {(view == "best", need) for need in needs(method, budget)}
        if "random_groups" in chosen.methods:
            distinct.add((view == "best", Need("joint", 0, budget.joint)))
    reporter.expect(seeds * sum(need.epochs for _, need in distinct))


def longest_stage(
    methods: Sequence[str],
    views: Sequence[str],
    epochs: int,
    max_epochs: int,
    num_groups: int | str,
    num_tasks: int,
) -> int:
    """Return how many epochs the longest stage of such a comparison has, at most."""
    chosen = _Chosen(tuple(methods), tuple(views), max_epochs, {})
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
    chosen: _Chosen,
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
