"""Forward passes without training: logits, probabilities, and the combination of K networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from pymtg._ranges import each
from pymtg._ranks import Ranks
from pymtg.data.arrays import as_tensor, is_sparse
from pymtg.errors import InvalidArgumentError
from pymtg.tasks import TaskLayout
from pymtg.trainers._batches import BatchSource, batch_source, input_batches
from pymtg.trainers.config import TrainConfig

__all__ = [
    "checked_logits",
    "class_probabilities",
    "combine_networks",
    "evaluating",
    "forward_all",
    "predict_any",
    "predict_batches",
    "predicted_values",
    "weight_dtype",
    "with_dtype",
    "without_autocast",
]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode; afterwards give every submodule its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def checked_logits(logits: Any, rows: int, layout: TaskLayout) -> torch.Tensor:
    """Return a model's output if it is a floating tensor [rows, num_logits].

    Raises
    ------
    InvalidArgumentError
        If it is anything else: the model and the layout do not belong together.
    """
    if not isinstance(logits, torch.Tensor):
        raise InvalidArgumentError(f"model must return one logits tensor; got {type(logits).__name__}")
    if logits.shape != (rows, layout.num_logits) or not logits.is_floating_point():
        raise InvalidArgumentError(
            f"model must return floating-point logits of shape [{rows}, {layout.num_logits}] for this layout; "
            f"got {list(logits.shape)} of {logits.dtype}"
        )
    return logits


def weight_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the dtype of a network's floating weights; None where they have several."""
    found = {weight.dtype for weight in network.parameters() if weight.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def with_dtype(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Return a floating tensor in this dtype, and anything else as it is: data need not have a network's dtype."""
    if dtype is None or not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return inputs
    return inputs.to(dtype)


def predict_batches(network: nn.Module, inputs: Iterable[Any], layout: TaskLayout, config: TrainConfig) -> torch.Tensor:
    """Return the logits [N, num_logits] (float32 at least, on the device) of batches of inputs, in eval mode."""
    parts, dtype = [], weight_dtype(network)
    with evaluating(network), torch.no_grad(), autocast(config):
        for batch in inputs:
            logits = network(with_dtype(batch, dtype))
            rows = len(batch) if isinstance(batch, torch.Tensor) else len(logits)
            parts.append(checked_logits(logits, rows, layout))
    if not parts:
        return torch.empty(0, layout.num_logits, device=config.torch_device)
    joined = torch.cat(parts)
    return joined if joined.dtype == torch.float64 else joined.float()


def predict_any(network: nn.Module, inputs: Any, layout: TaskLayout, config: TrainConfig) -> torch.Tensor:
    """Return probabilities [N, num_logits], on the CPU, of a tensor, array, data frame or dataset of (input, targets).

    Floating inputs become torch's default dtype, as from_arrays makes them for fit: numpy's default is float64.
    A list of lists is an array, as it is to fit; a list of anything else is a dataset.
    """
    nested = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
    if nested or hasattr(inputs, "__array__") or is_sparse(inputs):  # tensors among them
        inputs = as_tensor(inputs, "inputs").contiguous()
        inputs = inputs.to(torch.get_default_dtype()) if inputs.is_floating_point() else inputs
        logits = predict_batches(network, input_batches(inputs, config), layout, config)
    else:
        logits, _ = forward_all(network, batch_source(inputs, layout, config, "inputs"), layout, config)
    return class_probabilities(logits, layout).cpu()


def forward_all(
    network: nn.Module, source: BatchSource, layout: TaskLayout, config: TrainConfig, ranks: Ranks | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N, num_logits] and targets [N, T] of every sample of a source, in order; with ranks, its part."""
    targets = []

    def inputs() -> Iterator[Any]:
        for _, batch, batch_targets in each("data", source.in_order(ranks)):
            targets.append(batch_targets)
            yield batch

    logits = predict_batches(network, inputs(), layout, config)
    return logits, torch.cat(targets) if targets else torch.empty(0, layout.num_tasks, device=logits.device)


def autocast(config: TrainConfig) -> torch.autocast:
    """Return the autocast block of a configuration (disabled where amp is off)."""
    dtype = config.amp_dtype
    return torch.autocast(config.torch_device.type, dtype=dtype, enabled=dtype is not None)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a block without the caller's autocast, which would reach backward passes too.

    Where there is one, cast weights are not kept: they would be for as long as the outermost block lasts, all steps.
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False, cache_enabled=False)


def class_probabilities(logits: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    """Return probabilities in the logits' own columns: sigmoid of one-logit tasks, softmax within the others.

    The outputs of a regression task stay as they are.
    """
    if layout.has_regression:
        return torch.cat([_predicted(kind, p) for kind, p in zip(layout.kinds, layout.split(logits), strict=True)], 1)
    classes = set(layout.num_classes)
    if classes == {1}:
        return torch.sigmoid(logits)
    if len(classes) == 1:  # one batched softmax instead of T small ones
        return torch.softmax(logits.view(len(logits), layout.num_tasks, -1), dim=-1).view_as(logits)
    return torch.cat([_predicted("classification", p) for p in layout.split(logits)], dim=1)


def _predicted(kind: str, outputs: torch.Tensor) -> torch.Tensor:
    if kind == "regression":
        return outputs
    return torch.sigmoid(outputs) if outputs.shape[1] == 1 else torch.softmax(outputs, dim=-1)


def predicted_values(probabilities: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    """Return [N, T]: the most probable class of every task, int64; or, where tasks are regressions, floating values.

    As :func:`pymtg.metrics.score` counts them: the first of equals, and class 1 of a one-logit task above a half.
    Raises InvalidArgumentError for a class whose probabilities are NaN, which no class number could tell.
    """
    if probabilities.isnan().any():
        _check_known(probabilities, layout)
    if set(layout.num_classes) == {1} and not layout.has_regression:
        return (probabilities > 0.5).long()
    parts = zip(layout.kinds, layout.split(probabilities), strict=True)
    columns = [_value(kind, part) for kind, part in parts]
    return torch.stack([own.to(probabilities.dtype) for own in columns] if layout.has_regression else columns, 1)


def _check_known(probabilities: torch.Tensor, layout: TaskLayout) -> None:
    for name, kind, part in zip(layout.names, layout.kinds, layout.split(probabilities), strict=True):
        unknown = part.isnan().any(dim=1)
        if kind != "regression" and unknown.any():
            row = int(unknown.nonzero()[0, 0])
            raise InvalidArgumentError(f"inputs must give numbers for classes; row {row} gives nan for {name!r}")


def _value(kind: str, part: torch.Tensor) -> torch.Tensor:
    if kind == "regression":
        return part[:, 0]
    return (part[:, 0] > 0.5).long() if part.shape[1] == 1 else part.argmax(1)


def combine_networks(probabilities: Sequence[torch.Tensor], weights: torch.Tensor, layout: TaskLayout) -> torch.Tensor:
    """Return ``sum_k weights[t, k] * probabilities[k]`` with t the task of each column.

    `probabilities` are K tensors [N, num_logits], `weights` is [T, K] with rows that sum to one. A network whose
    weight is 0 for a task is left out of it altogether: what it would predict there, NaN included, plays no part.
    """
    counts = torch.tensor(layout.num_classes)
    columns = torch.repeat_interleave(weights.cpu(), counts, dim=0).to(probabilities[0])  # [num_logits, K]
    total = torch.zeros_like(probabilities[0])
    for k, part in enumerate(probabilities):
        weight = columns[:, k]
        total += torch.where(weight == 0, torch.zeros_like(part), part * weight)
    return total
