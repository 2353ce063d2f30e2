"""What a recorder listens to: modules, the tasks each stands for, and how their arguments are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.hooks._reading import MISSING, Reader
from pymtg.tasks import TaskLayout

__all__ = ["Source", "sources_of"]

# Losses of torch whose first argument is something else than the logits of a classification.
_NOT_OF_LOGITS: dict[type[nn.Module], str] = {
    nn.NLLLoss: "log-probabilities; use nn.CrossEntropyLoss on the logits",
    nn.BCELoss: "probabilities; use nn.BCEWithLogitsLoss on the logits",
    nn.KLDivLoss: "log-probabilities",
    nn.CTCLoss: "log-probabilities of sequences",
    nn.MSELoss: "regression outputs",
    nn.L1Loss: "regression outputs",
    nn.SmoothL1Loss: "regression outputs",
    nn.HuberLoss: "regression outputs",
    nn.PoissonNLLLoss: "rates",
    nn.GaussianNLLLoss: "regression outputs",
}


@dataclass(frozen=True)
class Source:
    """A module to hook, with one reader per task that it stands for, or one for the whole layout.

    ``named`` tells the two apart. ``takes_targets`` is False for the losses that are known to get their own.
    """

    module: nn.Module
    readers: tuple[Reader, ...]
    named: bool
    takes_targets: bool


def sources_of(losses: Any, layout: TaskLayout, ignore_index: int | None, in_order: bool) -> tuple[Source, ...]:
    """Return what to hook for a loss, a model, or a mapping of losses by task name."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, type(None))):
        raise InvalidTypeError(f"ignore_index must be an integer; got {ignore_index!r}")
    missing = MISSING if ignore_index is None else ignore_index
    if isinstance(losses, (Mapping, nn.ModuleDict)):
        return _by_task(dict(losses.items()), layout, missing, in_order)
    if in_order:
        raise InvalidArgumentError("in_order is for a dict of losses by task")
    if not isinstance(losses, nn.Module):
        raise InvalidTypeError(
            "loss_or_model must be a module, or a dict of losses by task; got "
            f"{getattr(losses, '__name__', type(losses).__name__)!r} (for functional losses pass None and call "
            "recorder.record(logits, targets, ids) in the loop)"
        )
    reader = _reader(losses, layout, missing, "loss_or_model")
    known = isinstance(_unwrapped(losses), (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss))
    return (Source(losses, (reader,), named=False, takes_targets=not known),)


def _by_task(losses: dict[Any, Any], layout: TaskLayout, missing: int, in_order: bool) -> tuple[Source, ...]:
    if set(losses) != set(layout.names):
        raise InvalidArgumentError(
            f"loss_or_model must have one loss per task of the layout; without a loss: "
            f"{sorted(set(layout.names) - set(losses))}, no task: {sorted(set(map(str, losses)) - set(layout.names))}"
        )
    readers: dict[nn.Module, list[Reader]] = {}
    for name, loss in losses.items():
        if not isinstance(loss, nn.Module):
            raise InvalidTypeError(f"loss_or_model[{name!r}] must be a module; got {type(loss).__name__}")
        readers.setdefault(loss, []).append(_reader(loss, layout.select([name]), missing, f"loss_or_model[{name!r}]"))
    for shared in readers.values():
        if len(shared) > 1 and not in_order:
            names = [reader.name for reader in shared]
            raise InvalidArgumentError(
                f"loss_or_model must have a module of its own for each task; {names} share one, and its calls do not "
                "say which task they are for. Make one loss per task, or pass in_order=True if the loop calls it for "
                "all of them, in the order of the dict, for every batch"
            )
    return tuple(Source(loss, tuple(of_loss), True, False) for loss, of_loss in readers.items())


def _reader(module: nn.Module, layout: TaskLayout, missing: int, argument: str) -> Reader:
    inner = _unwrapped(module)
    for kind, what in _NOT_OF_LOGITS.items():
        if isinstance(inner, kind):
            raise InvalidArgumentError(f"{argument} must take logits; {kind.__name__} takes {what}")
    softmax = isinstance(inner, nn.CrossEntropyLoss)
    if softmax:
        if layout.num_tasks != 1 or layout.num_logits < 2:
            raise InvalidArgumentError(
                f"{argument} is an nn.CrossEntropyLoss, which serves one softmax task of 2 or more classes; the layout "
                f"has {layout.num_tasks} tasks with {list(layout.num_classes)[:6]} logits. Give a dict of losses by "
                "task, or the model"
            )
        missing = inner.ignore_index
    elif isinstance(inner, nn.BCEWithLogitsLoss) and layout.num_logits != layout.num_tasks:
        name, count = next((n, c) for n, c in zip(layout.names, layout.num_classes, strict=True) if c > 1)
        raise InvalidArgumentError(
            f"{argument} is an nn.BCEWithLogitsLoss, which serves one-logit tasks; task {name!r} has {count} logits"
        )
    return Reader(layout.names[0], layout.num_logits, layout.num_tasks, missing, softmax)


def _unwrapped(module: nn.Module) -> Any:
    """Return the module inside a compiled one."""
    return getattr(module, "_orig_mod", module)
