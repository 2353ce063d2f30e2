"""The stages that methods are put together from: joint, single-task and specialised networks, and the grouping."""

from __future__ import annotations

import functools
import time
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pymtg._counting import counted
from pymtg._ranks import Ranks
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._copying import copy_of
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import BatchSource, batch_source
from pymtg.trainers._errors import UnlabelledTaskWarning
from pymtg.trainers._keeper import Keeper
from pymtg.trainers._loop import Trained, train_network
from pymtg.trainers._monitor import check_monitor
from pymtg.trainers._predict import class_probabilities, evaluating, forward_all, weight_dtype, with_dtype
from pymtg.trainers._progress import Reporter
from pymtg.trainers._run import Job
from pymtg.trainers._seeding import stage_seed
from pymtg.trainers.config import ModelFactory, TrainConfig, check_int

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["Setting", "check_model", "group_tasks"]


def check_model(model: object, layout: object) -> None:
    """Raise InvalidTypeError unless `model` is a factory and `layout` a TaskLayout."""
    if isinstance(model, nn.Module):
        raise InvalidTypeError(
            "model must be a factory, layout -> module, since several networks are trained; "
            f"got a {type(model).__name__} (for example pymtg.nets.mlp(...), or a class of yours)"
        )
    if not callable(model):
        raise InvalidTypeError(f"model must be a callable, layout -> torch.nn.Module; got {model!r}")
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")


@functools.cache
def load_what_is_late() -> None:
    """Let torch import what it does with a process's first optimizer: seconds that are no part of any training."""
    torch.optim.SGD([nn.Parameter(torch.empty(0))], lr=1.0)


def _warn_of(unlabelled: tuple[str, ...]) -> None:
    names = ", ".join(map(repr, unlabelled[:6])) + (", ..." if len(unlabelled) > 6 else "")
    warnings.warn(
        f"train holds no label for {counted(len(unlabelled), 'task')}: {names}. Nothing is learned there, and the data "
        "map says nothing of it",
        UnlabelledTaskWarning,
        stacklevel=5,
    )


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share: network, tasks, options, seed and data."""

    model: ModelFactory
    layout: TaskLayout
    config: TrainConfig
    seed: int
    train: BatchSource
    val: BatchSource | None
    reporter: Reporter
    built: list[weakref.ref[nn.Module]] = field(default_factory=list)
    keeper: Keeper = field(default_factory=Keeper)
    ranks: Ranks | None = None
    """Those that train the networks together; None where this process does alone."""

    def build(self, layout: TaskLayout) -> nn.Module:
        """Call the model factory; InvalidArgumentError if it hands out a network that it has handed out before."""
        network = self.model(layout)
        if isinstance(network, nn.Module):
            if any(earlier() is network for earlier in self.built):
                raise InvalidArgumentError("model must build a new network at each call; it returned one a second time")
            self.built.append(weakref.ref(network))
            self.give_shapes(network)
        return network

    def give_shapes(self, network: nn.Module) -> None:
        """Run a batch through lazy layers: what comes next asks for their weights, or goes by their types."""
        if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
            network.to(self.config.torch_device)
            _, inputs, _ = next(iter(self.train.in_order()))
            with evaluating(network), torch.no_grad():
                network(with_dtype(inputs, weight_dtype(network)))

    @classmethod
    def of(
        cls,
        model: ModelFactory,
        layout: TaskLayout,
        config: TrainConfig,
        seed: int,
        train: Any,
        val: Any,
        reporter: Reporter,
        ranks: Ranks | None = None,
    ) -> Setting:
        """Check the arguments that every method takes, and open the data."""
        if torch.is_inference_mode_enabled():
            raise InvalidArgumentError(
                "training must not be inside torch.inference_mode(): nothing has a gradient there"
            )
        load_what_is_late()
        check_model(model, layout)
        check_int("seed", seed, 0)
        check_monitor(config.monitor, layout)
        if config.keep_best and val is None:
            raise InvalidArgumentError("keep_best=True needs a validation set; got val=None")
        opened = None if val is None else batch_source(val, layout, config, "val")
        source = batch_source(train, layout, config, "train")
        if len(source.unlabelled) == layout.num_tasks:
            raise InvalidArgumentError("train must hold labels; all of them are missing")
        if config.keep_best and opened is not None and len(opened.unlabelled) == layout.num_tasks:
            raise InvalidArgumentError("keep_best=True needs a validation set with labels; all of val's are missing")
        if source.unlabelled:
            _warn_of(source.unlabelled)
        if ranks is not None and source.num_samples < ranks.world:
            raise InvalidArgumentError(
                f"train must hold a sample for each of the {ranks.world} ranks; got {source.num_samples}"
            )
        return cls(model, layout, config, seed, source, opened, reporter, ranks=ranks)

    def joint(
        self, index: int = 0, *, epochs: int, data_map: DataMap | None = None, snapshots: tuple[int, ...] = ()
    ) -> Trained:
        """Train network `index` on all tasks with equal weights; 0 is the joint network, others make an ensemble."""
        job = Job(
            name="joint" if index == 0 else f"member {index}",
            build=lambda: self.build(self.layout),
            layout=self.layout,
            seed=stage_seed(self.seed, "joint", index),
            epochs=epochs,
            data_map=data_map,
            snapshot_epochs=snapshots,
            ranks=self.ranks,
        )
        return train_network(job, self.train, self.val, self.config, self.reporter, keeper=self.keeper)

    def single(self, task: int, *, epochs: int) -> Trained:
        """Train a network on one task alone."""
        layout = self.layout.select([task])
        job = Job(
            name=f"task {self.layout.names[task]}",
            build=lambda: self.build(layout),
            layout=layout,
            seed=stage_seed(self.seed, "task", task),
            epochs=epochs,
            ranks=self.ranks,
        )
        val = None if self.val is None else self.val.select([task])
        return train_network(job, self.train.select([task]), val, self.config, self.reporter, keeper=self.keeper)

    def specialised(
        self,
        k: int,
        weights: npt.NDArray[np.float64],
        *,
        epochs: int,
        start: nn.Module | None = None,
        name: str = "group",
    ) -> Trained:
        """Train network k with task weights [T], from a copy of `start` or afresh."""
        job = Job(
            name=f"{name} {k}",
            build=(lambda: self.build(self.layout)) if start is None else (lambda: copy_of(start)),
            layout=self.layout,
            seed=stage_seed(self.seed, "group", k),
            epochs=epochs,
            weights=torch.from_numpy(weights.astype(np.float32)),
            ranks=self.ranks,
        )
        return train_network(job, self.train, self.val, self.config, self.reporter, keeper=self.keeper)

    def predict(
        self, network: nn.Module, test: BatchSource, layout: TaskLayout | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities [N, num_logits] and targets [N, T] of a source, on the CPU."""
        layout = self.layout if layout is None else layout
        logits, targets = forward_all(network, test, layout, self.config)
        return class_probabilities(logits, layout).cpu(), targets.cpu()


def group_tasks(
    data_map: DataMap, setting: Setting, num_groups: int | str, mode: str, fuzzifier: float, n_init: int
) -> tuple[TaskGroups, float]:
    """Cluster the tasks by their data maps; return the groups and the seconds it took."""
    from pymtg.cluster import FuzzyKMeans  # brings scikit-learn along
    from pymtg.groups import TaskGroups, grouped_by

    if setting.layout.num_tasks == 1:  # nothing to cluster
        quality = {"inertia": 0.0, "silhouette": None, "partition_coefficient": 1.0}
        return TaskGroups(setting.layout.names, np.ones((1, 1)), np.zeros(1, dtype=np.int64), quality), 0.0
    start = time.perf_counter()
    random_state = stage_seed(setting.seed, "cluster") % 2**32
    estimator = FuzzyKMeans(num_groups, mode=mode, fuzzifier=fuzzifier, n_init=n_init, random_state=random_state)
    groups = grouped_by(estimator, data_map, setting.layout.names, number="num_groups")
    return groups, time.perf_counter() - start
