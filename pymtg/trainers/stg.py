"""STG: train jointly while recording data maps, group the tasks by them, train one network per group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pymtg._counting import counted
from pymtg._ranks import Ranks, lost_peers
from pymtg.datamap import DataMap
from pymtg.errors import InvalidTypeError
from pymtg.metrics import Scores, score
from pymtg.nets.grouped import GroupedNet
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import batch_source
from pymtg.trainers._described import described
from pymtg.trainers._errors import NotFittedError
from pymtg.trainers._long_run import LongRun
from pymtg.trainers._predict import (
    class_probabilities,
    combine_networks,
    forward_all,
    predict_any,
    predicted_values,
)
from pymtg.trainers._progress import reporting
from pymtg.trainers._seeding import cpu_threads
from pymtg.trainers._stages import Setting, check_model
from pymtg.trainers._stg_run import STGPlan, check_form, group_from_joint, hard_weights, specialise
from pymtg.trainers.config import (
    EpochCallback,
    ModelFactory,
    OptimizerFactory,
    SchedulerFactory,
    TrainConfig,
    check_choice,
    check_int,
)
from pymtg.trainers.results import STGResult

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["STGTrainer"]

_COMBINERS = ("soft", "hard")
_FITTED = ("joint_model_", "models_", "groups_", "data_map_", "result_")


class STGTrainer:
    """Data-map task grouping, end to end (STG-MTL).

    1. One network learns all tasks with equal weights; the loss records every sample's data map, with a snapshot at
       each of `snapshot_epochs`.
    2. The tasks are clustered by their maps: memberships ``u`` [T, K], rows summing to 1.
    3. K networks of the same kind are trained, network k with task weights ``w_t = u[t, k]``.
    4. A task is predicted by all K networks, averaged with weights ``u[t]`` (soft), or by the one where its
       membership is largest (hard).

    Parameters
    ----------
    model
        Factory ``layout -> torch.nn.Module`` (:func:`pymtg.nets.mlp`, a class, any callable) of networks that return
        logits [B, layout.num_logits].
    layout
        The T tasks.
    num_groups
        K, from 1 to T; ``"auto"`` lets :func:`pymtg.cluster_tasks` choose.
    epochs
        Epochs of the joint network.
    snapshot_epochs
        Epochs, from 1 to `epochs`, at which the cumulative map is kept as features for the grouping. By default a
        quarter, half, three quarters and all of the epochs (our choice; the paper leaves it to the user).
    snapshots
        Where those go, as in :class:`pymtg.DataMap`: ``"memory"``, ``"host"`` (host memory, for a map
        on a GPU), ``"disk"`` (a temporary file), or ``"gram"``, which groups by the same numbers and keeps none of
        them, so that ``data_map_`` has no snapshots and its file holds the Gram matrix. ``"auto"``: in memory up to
        1 GiB in all, on disk beyond.
    specialised_epochs
        Epochs of each specialised network; by default `epochs` for a fresh start, half of it (rounded up) for a
        joint one.
    init
        ``"fresh"``: the specialised networks start from new random weights, as in the paper. ``"joint"``: from the
        joint network's.
    specialise
        How those are trained. ``"one-by-one"``: one after the other. ``"together"``: at once, as one network of stacked
        parameters; every step takes a batch for each. Weights, histories and best epochs are the same to rounding; an
        epoch of all is told of before the next one. Needs networks of :mod:`pymtg.nets` or plain sequences of common
        layers without dropout, and an optimizer of torch's that treats every weight alone; a dataset that is not held
        in tensors is then read once for all, and its order is that of the first network for all. ``"auto"``: together
        where the results are the same and small layers make it faster on a CPU (docs/performance.md), else one by one.
        Where several ranks train, all of them do so at each network; ``"spread"`` is each network whole by one rank,
        bit for bit as one process would train it, as many at a time as there are ranks. ``"auto"`` is the same there,
        each rank training its networks together where that is faster.
    lr, optimizer, scheduler, batch_size, device, amp, num_threads, num_workers, keep_best, monitor, on_epoch_end
        As in :class:`pymtg.trainers.TrainConfig`; the same for all 1 + K networks. A specialised network's validation
        score weighs the tasks as its loss does.
    fuzzifier, mode, n_init
        As in :func:`pymtg.cluster_tasks`.
    seed
        Everything random follows from it. The global random states are left as they were.
    missing
        Whether the data map reserves room for missing labels. None finds out where the training targets are in
        memory, and means True elsewhere.
    progress
        True shows a progress bar (rich) on stderr, False none, None one if stderr is a terminal.
    checkpoint_dir, checkpoint_every, checkpoint_keep
        Directory for checkpoints, from which ``fit(..., resume=True)`` goes on; None for none. Saved every so many
        epochs (an integer), or when a time has passed (``"10min"``), or both (``"5,10min"``); the last
        `checkpoint_keep` can be gone back to.
    log
        File for a JSON object an epoch; None for none.
    tensorboard
        Directory for TensorBoard: a run of its own for every stage, whose steps are its epochs, and groups and data map
        at the end. Needs the ``tensorboard`` extra; None for none.
    profile
        Directory for a profile: ``pymtg.pt.trace.json``, a trace by torch's profiler of every stage's first steps, and
        a table of where the time of all of them went (``profile.txt``, ``profile.json``); None for none, at no cost.

    Attributes
    ----------
    joint_model_ : torch.nn.Module
        The network of step 1, on `device`.
    models_ : list of torch.nn.Module
        The K networks of step 3, on the device they were trained on.
    groups_ : pymtg.TaskGroups
        Memberships, labels and quality.
    data_map_ : pymtg.DataMap
        The recorded map with its snapshots, or their Gram matrix.
    result_ : STGResult
        The above with histories, seconds, parameters and epochs of every stage.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For an argument out of its range or of a wrong type.

    Notes
    -----
    Sherif et al., "STG-MTL: Scalable task grouping for multi-task learning using data maps", Machine Learning:
    Science and Technology 5(2), 2024; arXiv 2307.03374. The soft combination is ours.
    """

    joint_model_: nn.Module
    models_: list[nn.Module]
    groups_: TaskGroups
    data_map_: DataMap
    result_: STGResult

    def __init__(
        self,
        model: ModelFactory,
        layout: TaskLayout,
        *,
        num_groups: int | str = 3,
        epochs: int = 20,
        snapshot_epochs: Sequence[int] | None = None,
        snapshots: str = "auto",
        specialised_epochs: int | None = None,
        init: str = "fresh",
        specialise: str = "auto",
        lr: float = 1e-3,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        batch_size: int = 32,
        fuzzifier: float = 1.07,
        mode: str = "kmeans-fuzzified",
        n_init: int = 10,
        seed: int = 0,
        device: str | torch.device | None = None,
        amp: bool | str = False,
        num_threads: int | None = None,
        num_workers: int = 0,
        keep_best: bool = False,
        monitor: str | None = None,
        missing: bool | None = None,
        on_epoch_end: EpochCallback | None = None,
        progress: bool | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str = 1,
        checkpoint_keep: int = 2,
        log: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        profile: str | os.PathLike[str] | None = None,
    ) -> None:
        check_model(model, layout)
        self.model, self.layout = model, layout
        self.config = TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            scheduler=scheduler,
            device=device,
            amp=amp,
            num_threads=num_threads,
            num_workers=num_workers,
            keep_best=keep_best,
            monitor=monitor,
            on_epoch_end=on_epoch_end,
        )
        self.plan = STGPlan.checked(
            layout.num_tasks,
            num_groups=num_groups,
            epochs=epochs,
            snapshot_epochs=snapshot_epochs,
            snapshots=snapshots,
            specialised_epochs=specialised_epochs,
            init=init,
            specialise=specialise,
            fuzzifier=fuzzifier,
            mode=mode,
            n_init=n_init,
        )
        self.seed = check_int("seed", seed, 0)
        if missing is not None and not isinstance(missing, bool):
            raise InvalidTypeError(f"missing must be True, False or None; got {missing!r}")
        self.missing = missing
        self.progress = progress
        self.long_run = LongRun.checked(checkpoint_dir, checkpoint_every, checkpoint_keep, log, tensorboard, profile)

    def fit(self, train: Any, val: Any = None, *, resume: bool = False) -> STGTrainer:
        """Run the three training steps.

        Parameters
        ----------
        train, val
            A map-style dataset of (input, targets [T]) of any kind, or a tuple (inputs, targets) of arrays or
            tensors. With `val`, every epoch of every network is scored on it.

        resume
            Go on from the newest good checkpoint in `checkpoint_dir`, or begin where there is none. On the CPU the
            end is that of a run which was never stopped, bit for bit.

        Returns
        -------
        The trainer itself. If anything fails or interrupts, it is left unfitted.

        Raises
        ------
        FileFormatError
            If there are checkpoints and none is good, or they are of another version.
        OSError
            If a checkpoint cannot be written; those before it are whole.
        InvalidArgumentError, InvalidTypeError
            If the data is empty or does not fit the layout, or the model's output does not; if specialise="together"
            cannot be, with the reason; if the checkpoint to go on from is of another run, with what differs.
        NonFiniteLossError
            If a loss or a weight becomes NaN or infinite; names the stage, the epoch and the tasks.
        """
        for name in _FITTED:
            self.__dict__.pop(name, None)
        ranks = Ranks.here()
        with cpu_threads(self.config.num_threads), lost_peers(ranks), reporting(self.progress, ranks) as reporter:
            setting = Setting.of(self.model, self.layout, self.config, self.seed, train, val, reporter, ranks)
            options = {**described(self.plan), "missing": self.missing}
            with self.long_run.opened(setting, "stg", options, resume) as kept:
                fitted = self._run(kept)
                self.__dict__.update(fitted)  # all at once: an interrupted fit leaves nothing behind
                reporter.found(self.groups_, self.data_map_)
        return self

    def _run(self, setting: Setting) -> dict[str, Any]:
        known = self.plan.num_groups if isinstance(self.plan.num_groups, int) else 0
        setting.reporter.expect(self.plan.epochs + known * self.plan.specialised_epochs)
        check_form(setting, self.plan)
        grouped = group_from_joint(setting, self.plan, missing=self.missing)
        if not known:
            setting.reporter.expect(grouped.memberships.shape[1] * self.plan.specialised_epochs)
        trained, together = specialise(setting, self.plan, grouped)
        result = STGResult(
            joint=grouped.joint.stage,
            specialised=tuple(one.stage for one in trained),
            grouping_seconds=grouped.seconds,
            groups=grouped.groups,
            data_map=grouped.data_map,
            snapshot_epochs=self.plan.snapshot_epochs,
            seed=self.seed,
            together=together,
        )
        models = [one.network for one in trained]
        return dict(
            zip(_FITTED, (grouped.joint.network, models, grouped.groups, grouped.data_map, result), strict=True)
        )

    def predict_proba(self, inputs: Any, combine: str = "soft") -> torch.Tensor:
        """Predict class probabilities.

        Parameters
        ----------
        inputs
            A tensor or array [N, ...], or a dataset of (input, targets), whose targets are not used. Floating inputs
            become torch's default dtype, as in :meth:`fit`.
        combine
            ``"soft"`` or ``"hard"``; see the class.

        Returns
        -------
        [N, layout.num_logits] on the CPU, float32 at least, in the logits' columns: P(y = 1)
        for a one-logit task, C probabilities that sum to 1 for a softmax task, the predictions of a regression task
        (averaged over the networks as probabilities are). The networks run in eval mode and get
        their own modes back.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InvalidArgumentError
            For an unknown `combine`.
        InvalidTypeError
            If the inputs are neither a tensor, an array nor a dataset.
        """
        weights = self._weights(combine)
        with cpu_threads(self.config.num_threads):
            parts = [predict_any(network, inputs, self.layout, self.config) for network in self.models_]
            return combine_networks(parts, weights, self.layout)

    def predict(self, inputs: Any, combine: str = "soft") -> torch.Tensor:
        """Predict classes, and the values of regression tasks.

        Takes and raises what :meth:`predict_proba` does, and InvalidArgumentError where a class would be chosen by NaN.

        Returns
        -------
        [N, T] on the CPU: the most probable class, int64; where tasks are regressions floating-point, with class
        numbers as floats.
        """
        return predicted_values(self.predict_proba(inputs, combine), self.layout)

    def prune(self) -> GroupedNet:
        """Return the hard combination as one plain module: of each group its network with the heads of its tasks.

        In eval mode, from inputs to logits [B, layout.num_logits], weights copied: for ``torch.export``,
        :func:`pymtg.nets.save_grouped`, or training on.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InvalidTypeError
            If `model` makes other networks than :class:`pymtg.nets.MultiHeadNet`: they do not tell heads from the rest.
        """
        return GroupedNet.from_networks(self.models_, self._weights("hard").argmax(1))

    def evaluate(self, test: Any) -> dict[str, Scores]:
        """Score ``"stg_soft"``, ``"stg_hard"`` and ``"mtl"`` (the joint network alone) on a test set.

        Parameters
        ----------
        test
            As `train` in :meth:`fit`.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InvalidArgumentError, InvalidTypeError
            If the data is empty or does not fit the layout.
        """
        weights = {f"stg_{combine}": self._weights(combine) for combine in _COMBINERS}
        networks = (*self.models_, self.joint_model_)
        with cpu_threads(self.config.num_threads):
            source = batch_source(test, self.layout, self.config, "test")
            parts = [forward_all(network, source, self.layout, self.config) for network in networks]
            targets = parts[0][1].cpu()
            *specialised, joint = [class_probabilities(logits, self.layout).cpu() for logits, _ in parts]
            combined = {name: combine_networks(specialised, w, self.layout) for name, w in weights.items()}
            return {name: score(p, targets, self.layout) for name, p in {**combined, "mtl": joint}.items()}

    def _weights(self, combine: str) -> torch.Tensor:
        check_choice("combine", combine, _COMBINERS)
        memberships = np.array(self.groups_.memberships, dtype=np.float64)  # a copy that may be written to, for torch
        return torch.from_numpy(memberships if combine == "soft" else hard_weights(memberships))

    def __repr__(self) -> str:
        fitted = "fitted" if "result_" in self.__dict__ else "not fitted"
        options = f"num_groups={self.plan.num_groups!r}, epochs={self.plan.epochs}, seed={self.seed}"
        return f"STGTrainer({counted(self.layout.num_tasks, 'task')}, {options}; {fitted})"

    def __getattr__(self, name: str) -> Any:
        if name in _FITTED:
            raise NotFittedError(f"{name} is set by fit: call STGTrainer.fit first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
