"""How a network is trained: one frozen set of options for every method."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from pymtg._counting import counted
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import METRICS, REGRESSION_METRICS
from pymtg.tasks import TaskLayout
from pymtg.trainers.results import EpochRecord

__all__ = ["ModelFactory", "OptimizerFactory", "SchedulerFactory", "TrainConfig"]

ModelFactory: TypeAlias = Callable[[TaskLayout], nn.Module]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
EpochCallback: TypeAlias = Callable[[str, EpochRecord], None]

AMP_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MONITORS = (*METRICS, *REGRESSION_METRICS, "loss")


@dataclass(frozen=True)
class TrainConfig:
    """Options of one network's training, shared by all methods.

    Parameters
    ----------
    epochs
        Passes over the training set.
    batch_size
        Most rows in a batch. An epoch is cut into ``ceil(M / batch_size)`` batches whose sizes differ by at most
        one, so that no runt batch of a row or two comes last.
    lr
        Learning rate of the default optimizer, Adam.
    optimizer
        ``parameters -> Optimizer``; replaces the default, and `lr` then has no effect.
    scheduler
        ``optimizer -> scheduler``, stepped once an epoch.
    device
        Where to train; None means CUDA where there is a device, else the CPU.
    amp
        False, or the type that the forward pass autocasts to: ``"bfloat16"``, or ``"float16"`` (CUDA only, with
        loss scaling). True means ``"bfloat16"``.
    num_threads
        Threads of torch's CPU operations during fit or a comparison, given back afterwards; None leaves them. For
        networks of a few hundred units a layer one thread is as fast as several, and up to 20 times faster where
        other processes want the same cores.
    num_workers
        Worker processes that load a dataset which is not held in tensors.
    keep_best
        Keep the weights of the epoch with the best validation score, the first of equal ones, instead of the last
        ones; needs a validation set. A network that predicts no positive yet has a balanced accuracy of 0.5 at epoch
        after epoch: where positives are rare, let `monitor` be a ranking metric or the loss.
    monitor
        The validation score: one of :data:`pymtg.metrics.METRICS` or of :data:`pymtg.metrics.REGRESSION_METRICS`, or
        ``"loss"``; of RMSE and loss the negative, so that more is better. None means balanced accuracy for
        classification and R^2 for regression tasks.
    on_epoch_end
        Called with the stage's name and the :class:`EpochRecord` after every epoch.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range or unknown; the message names the argument, the rule and the value.
    InvalidTypeError
        If a value has the wrong type.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    device: str | torch.device | None = None
    amp: bool | str = False
    num_threads: int | None = None
    num_workers: int = 0
    keep_best: bool = False
    monitor: str | None = None
    on_epoch_end: EpochCallback | None = None

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs, 1)
        check_int("batch_size", self.batch_size, 1)
        check_int("num_workers", self.num_workers, 0)
        if self.num_threads is not None:
            most = 4 * max(16, os.cpu_count() or 1)  # OpenMP ends the process where it cannot start them
            if check_int("num_threads", self.num_threads, 1) > most:
                raise InvalidArgumentError(f"num_threads must be at most {most} here; got {self.num_threads}")
        lr: object = self.lr
        if isinstance(lr, bool) or not isinstance(lr, numbers.Real):
            raise InvalidTypeError(f"lr must be a number; got {self.lr!r}")
        if not 0 < self.lr < float("inf"):
            raise InvalidArgumentError(f"lr must be positive and finite; got {self.lr}")
        if not isinstance(self.keep_best, bool):
            raise InvalidTypeError(f"keep_best must be True or False; got {self.keep_best!r}")
        for name in ("optimizer", "scheduler", "on_epoch_end"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise InvalidTypeError(f"{name} must be callable or None; got {value!r}")
        if self.monitor is not None:
            check_choice("monitor", self.monitor, MONITORS)
        if not isinstance(self.amp, bool):
            check_choice("amp", self.amp, tuple(AMP_TYPES))
        device = self.torch_device
        if self.amp_dtype is torch.float16 and device.type == "cpu":
            raise InvalidArgumentError(
                "amp='float16' needs a CUDA device, its range is too small without loss scaling; "
                "got device cpu (use 'bfloat16')"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device to train on."""
        wanted = self.device
        if wanted is None:
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(wanted)
        except (RuntimeError, TypeError):
            raise InvalidArgumentError(f"device must name a torch device; got {self.device!r}") from None
        return _checked_cuda(device, wanted) if device.type == "cuda" else device

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """What the forward pass autocasts to; None for no autocast."""
        if isinstance(self.amp, bool):
            return torch.bfloat16 if self.amp else None
        return AMP_TYPES[self.amp]

    def build_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a network."""
        parameters = list(network.parameters())
        if self.optimizer is not None:
            made = self.optimizer(parameters)
            if not isinstance(made, torch.optim.Optimizer):
                raise InvalidTypeError(f"optimizer must return a torch.optim.Optimizer; got {type(made).__name__}")
            if isinstance(made, torch.optim.LBFGS):
                raise InvalidArgumentError("optimizer must step without a closure, which LBFGS calls several times")
            return made
        # fused: a third off a small network's epoch
        return torch.optim.Adam(parameters, lr=self.lr, fused=self.torch_device.type in ("cpu", "cuda"))

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Return the scheduler of an optimizer, if there is one."""
        if self.scheduler is None:
            return None
        made = self.scheduler(optimizer)
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau) or not hasattr(made, "step"):
            raise InvalidTypeError(
                f"scheduler must return one that is stepped once an epoch, by no score; got {type(made).__name__}"
            )
        return made


def check_int(name: str, value: object, lowest: int) -> int:
    """Return `value` as an int if it is an integer, of NumPy or not, of at least `lowest`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"{name} must be an integer; got {value!r} of type {type(value).__name__}")
    if value < lowest:
        raise InvalidArgumentError(f"{name} must be at least {lowest}; got {value}")
    return int(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def _checked_cuda(device: torch.device, wanted: str | torch.device) -> torch.device:
    """Return a CUDA device with its number, as tensors report it; raises where it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        seen = counted(count, "CUDA device") if count else "no CUDA device"
        raise InvalidArgumentError(f"device must be one that is here; got {wanted!r}, and torch sees {seen}")
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
