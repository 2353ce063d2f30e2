"""DMTG: learn which branch serves which task while the branches are trained, then keep what was chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pymtg._counting import counted
from pymtg._ranks import Ranks, lost_peers
from pymtg._task_split import TaskLossFunction
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import Scores, score
from pymtg.nets.assignment import TaskAssignment
from pymtg.nets.branched import BranchedNet
from pymtg.nets.grouped import GroupedNet
from pymtg.nets.multihead import count_parameters
from pymtg.nets.temperature import Temperature
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import batch_source
from pymtg.trainers._described import described
from pymtg.trainers._dmtg_plan import DMTGPlan
from pymtg.trainers._dmtg_stages import Grouping, NetFactory, network_maker, train_dmtg
from pymtg.trainers._errors import NotFittedError
from pymtg.trainers._long_run import LongRun
from pymtg.trainers._predict import class_probabilities, forward_all, predict_any, predicted_values
from pymtg.trainers._progress import reporting
from pymtg.trainers._seeding import cpu_threads
from pymtg.trainers._stages import Setting
from pymtg.trainers.config import EpochCallback, OptimizerFactory, SchedulerFactory, TrainConfig, check_int
from pymtg.trainers.results import DMTGResult

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["DMTGTrainer"]

_FITTED = ("net_", "assignment_", "model_", "groups_", "assignment_history_", "data_map_", "result_")


class DMTGTrainer:
    """One-shot differentiable multi-task grouping, end to end (DMTG).

    K branches with a head for every task each are trained on ``sum_tk Z_tk loss_tk``, Z a fresh relaxed draw a step
    from the categorical distributions ``softmax(theta_t)``; theta is learned on the way. At the end every task keeps
    the head of its most probable branch, and branches that no task has chosen are gone.

    Parameters
    ----------
    net
        A :class:`pymtg.nets.BranchedNet` (copied: the one given is left as it is), or a factory of them, ``layout ->
        BranchedNet``; or a factory of :class:`pymtg.nets.MultiHeadNet`, as :func:`pymtg.nets.mlp` returns, whose
        backbone becomes the branch.
    layout
        The T tasks.
    num_groups
        K where `net` makes a MultiHeadNet, by default 3; it may be more than T. A BranchedNet has its own, and another
        number beside it is an error.
    epochs
        Epochs of the grouped training.
    lr, optimizer, scheduler, batch_size, device, amp, num_threads, num_workers, keep_best, monitor, on_epoch_end
        As in :class:`pymtg.trainers.TrainConfig`; for all stages. With `keep_best` the network and the assignment of
        the epoch with the best validation score are kept together.
    assignment
        ``"learned"``; or, to compare with, fixed: ``"diagonal"`` (task t on branch ``t mod K``) or ``"random"`` (dealt
        out evenly in an order drawn from the seed); or a :class:`pymtg.nets.TaskAssignment`, which is copied. A fixed
        one has no use for `sampling` to `balance_weight` and `drop_branches`.
    sampling, init, eps
        Of a learned assignment, as in :class:`pymtg.nets.TaskAssignment`; one that is given has its own.
    assignment_lr
        Learning rate of the Adam that trains theta.
    assignment_warmup
        Share of the grouped training's steps, from 0 up to 1, in which theta rests while the branches begin to learn
        (ours). In the first step heads that start at zero leave theta's gradient nothing but rounding errors, of which
        Adam would make a whole step; a long rest finds planted groups less often (docs/performance.md).
    temperature
        A number, or a :class:`pymtg.nets.Temperature` that moves over the steps of the grouped training.
    entropy_weight
        lambda of the entropy term; 0 leaves it out, as in most of the released configurations.
    balance_weight
        Weight, times T, of the divergence of the branches' mean probability over the tasks from equal shares (ours).
        Without it two groups may settle on one branch while another stands empty; 0 leaves it out.
    warm_epochs
        Train one branch on all tasks for so many epochs first and start every branch from it (the released code's
        start from an MTL network).
    finetune_epochs, freeze_trunk
        Epochs of training after pruning, and whether a trunk stays as it is in them.
    drop_branches
        Whether to drop a branch during training once no task will move to it any more: once every task's best theta is
        ahead by more than ``2 * assignment_lr`` for each step that is left, Adam moving an entry by about
        `assignment_lr` a step. The others then share what it had of the draws.
    losses
        As in :class:`pymtg.branched_loss.BranchedLoss`.
    record
        Whether to record a data map, of the gold probabilities under each task's most probable branch, with a snapshot
        after each quarter of the epochs.
    seed
        Everything random follows from it. The global random states are left as they were.
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
    model_ : pymtg.nets.GroupedNet
        The pruned network, fine-tuned where asked for: a plain module, inputs to logits [B, C], in eval mode, on the
        device it was trained on.
    net_ : pymtg.nets.BranchedNet
        All branches that were left and all their heads, before pruning.
    assignment_ : pymtg.nets.TaskAssignment
        theta as it ended.
    groups_ : pymtg.TaskGroups
        Memberships ``softmax(theta)`` [T, K] and labels ``argmax theta``, in the numbers the branches began with.
    assignment_history_ : numpy.ndarray
        [epochs + 1, T, K] float64: ``softmax(theta)`` before the first epoch and after each; 0 for a dropped branch.
        With `keep_best` it goes on past the epoch that was kept, whose row is ``groups_.memberships``.
    data_map_ : pymtg.DataMap or None
        Where one was recorded.
    result_ : DMTGResult
        Histories, seconds, parameters, temperatures, entropies.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For an argument out of its range or of a wrong type.

    Notes
    -----
    Gao et al., "DMTG: One-shot differentiable multi-task grouping", ICML 2024, arXiv 2407.05082. Temperature
    schedules and the dropping of branches are ours.
    """

    net_: BranchedNet
    assignment_: TaskAssignment
    model_: GroupedNet
    groups_: TaskGroups
    assignment_history_: npt.NDArray[np.float64]
    data_map_: DataMap | None
    result_: DMTGResult

    def __init__(
        self,
        net: BranchedNet | NetFactory,
        layout: TaskLayout,
        *,
        num_groups: int | None = None,
        epochs: int = 20,
        lr: float = 1e-3,
        assignment: str | TaskAssignment = "learned",
        sampling: str = "gumbel",
        init: str = "ones",
        eps: float = 0.0,
        assignment_lr: float = 1e-2,
        assignment_warmup: float = 0.02,
        temperature: float | Temperature = 2.5,
        entropy_weight: float = 0.0,
        balance_weight: float = 0.1,
        warm_epochs: int = 0,
        finetune_epochs: int = 0,
        freeze_trunk: bool = False,
        drop_branches: bool = True,
        losses: Mapping[str, str | TaskLossFunction] | None = None,
        record: bool = False,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        batch_size: int = 32,
        seed: int = 0,
        device: str | torch.device | None = None,
        amp: bool | str = False,
        num_threads: int | None = None,
        num_workers: int = 0,
        keep_best: bool = False,
        monitor: str | None = None,
        on_epoch_end: EpochCallback | None = None,
        progress: bool | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str = 1,
        checkpoint_keep: int = 2,
        log: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        profile: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(layout, TaskLayout):
            raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
        self.net, self.layout = net, layout
        self.plan = DMTGPlan.checked(
            layout,
            num_groups=3 if num_groups is None else num_groups,
            epochs=epochs,
            assignment=assignment,
            sampling=sampling,
            init=init,
            eps=eps,
            assignment_lr=assignment_lr,
            assignment_warmup=assignment_warmup,
            temperature=temperature,
            entropy_weight=entropy_weight,
            balance_weight=balance_weight,
            warm_epochs=warm_epochs,
            finetune_epochs=finetune_epochs,
            freeze_trunk=freeze_trunk,
            drop_branches=drop_branches,
            losses=losses,
            record=record,
        )
        self._make = network_maker(net, layout, num_groups)
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
        self.seed = check_int("seed", seed, 0)
        self.progress = progress
        self.long_run = LongRun.checked(checkpoint_dir, checkpoint_every, checkpoint_keep, log, tensorboard, profile)

    def fit(self, train: Any, val: Any = None, *, resume: bool = False) -> DMTGTrainer:
        """Train, prune, fine-tune where asked for.

        Parameters
        ----------
        train, val
            A map-style dataset of (input, targets [T]) of any kind, or a tuple (inputs, targets) of arrays or
            tensors. With `val`, every epoch is scored on it, each task by its most probable branch.

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
            If the data is empty or does not fit the layout, or the network's output does not; if the checkpoint
            to go on from is of another run, with what differs.
        NonFiniteLossError
            If a loss or a weight becomes NaN or infinite; names the stage, the epoch and the tasks.
        """
        for name in _FITTED:
            self.__dict__.pop(name, None)
        ranks = Ranks.here()
        with cpu_threads(self.config.num_threads), lost_peers(ranks), reporting(self.progress, ranks) as reporter:
            setting = Setting.of(self._factory, self.layout, self.config, self.seed, train, val, reporter, ranks)
            reporter.expect(self.plan.warm_epochs + self.plan.epochs + self.plan.finetune_epochs)
            with self.long_run.opened(setting, "dmtg", described(self.plan), resume) as kept:
                found = train_dmtg(kept, self.plan, self._make)
                self.__dict__.update(self._fitted(found))  # all at once: an interrupted fit leaves nothing behind
                reporter.found(self.groups_, self.data_map_)
        return self

    def prune(self) -> GroupedNet:
        """Return a new plain module with each task's chosen head and the branches in use, as training left them.

        Without fine-tuning it equals ``model_``. Raises NotFittedError before :meth:`fit`.
        """
        return self.net_.prune(self.assignment_.labels())

    def predict_proba(self, inputs: Any) -> torch.Tensor:
        """Predict class probabilities with the pruned network.

        Parameters
        ----------
        inputs
            A tensor or array [N, ...], or a dataset of (input, targets), whose targets are not used. Floating inputs
            become torch's default dtype, as in :meth:`fit`.

        Returns
        -------
        [N, layout.num_logits] on the CPU, float32 at least, in the logits' columns: P(y = 1) for a one-logit task, C
        probabilities that sum to 1 for a softmax task, the prediction itself for a regression task.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        InvalidTypeError
            If the inputs are neither a tensor, an array nor a dataset.
        """
        model = self.model_
        with cpu_threads(self.config.num_threads):
            return predict_any(model, inputs, self.layout, self.config)

    def predict(self, inputs: Any) -> torch.Tensor:
        """Predict classes, and the values of regression tasks, with the pruned network.

        Takes and raises what :meth:`predict_proba` does, and InvalidArgumentError where a class would be chosen by NaN.

        Returns
        -------
        [N, T] on the CPU: the most probable class, int64; where tasks are regressions floating-point, with class
        numbers as floats.
        """
        return predicted_values(self.predict_proba(inputs), self.layout)

    def evaluate(self, test: Any) -> dict[str, Scores]:
        """Score the pruned network on a test set, under the name ``"dmtg"``.

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
        model = self.model_
        with cpu_threads(self.config.num_threads):
            source = batch_source(test, self.layout, self.config, "test")
            logits, targets = forward_all(model, source, self.layout, self.config)
            return {"dmtg": score(class_probabilities(logits, self.layout).cpu(), targets.cpu(), self.layout)}

    def _factory(self, layout: TaskLayout) -> Any:
        """Stand for the model where stages ask for one: DMTG makes its networks itself."""
        raise InvalidArgumentError("net makes one network for all tasks")

    def _fitted(self, found: Grouping) -> dict[str, Any]:
        trace = found.trace
        result = DMTGResult(
            stages=found.stages,
            groups=found.groups,
            temperatures=tuple(trace.temperatures),
            entropies=tuple(trace.entropies),
            moved=tuple(trace.moved),
            dropped=dict(trace.dropped),
            parameters_before_pruning=trace.parameters,
            parameters=count_parameters(found.model),
            num_branches=found.groups.num_groups,
            seed=self.seed,
        )
        history = np.stack(trace.probabilities)
        values = (
            found.net.eval(),
            found.assignment.eval(),
            found.model.eval(),
            found.groups,
            history,
            found.data_map,
            result,
        )
        return dict(zip(_FITTED, values, strict=True))

    def __repr__(self) -> str:
        fitted = "not fitted"
        if "result_" in self.__dict__:
            fitted = f"fitted, {counted(self.result_.num_branches, 'branch', 'branches')}"
        tasks = counted(self.layout.num_tasks, "task")
        return f"DMTGTrainer({tasks}, epochs={self.plan.epochs}, seed={self.seed}; {fitted})"

    def __getattr__(self, name: str) -> Any:
        if name in _FITTED:
            raise NotFittedError(f"{name} is set by fit: call DMTGTrainer.fit first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
