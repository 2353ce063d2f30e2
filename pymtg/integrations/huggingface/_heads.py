"""From a transformers model, its inputs and its outputs to logits ``[B, C]``, targets ``[B, T]`` and a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["layout_of_model", "logits_of", "targets_of"]


def layout_of_model(config: Any, targets: Tensor) -> TaskLayout:
    """Return the layout of a classification head from the model's configuration and the first targets.

    A ``single_label_classification`` is one softmax task, called ``"label"``; a ``multi_label_classification`` one
    binary task per label, called as ``id2label`` has it. Where the configuration does not say, integer class numbers
    ``[B]`` mean the first and floating-point labels the second, as in transformers itself.

    Raises
    ------
    InvalidArgumentError
        For a regression, and where there is no configuration to read.
    """
    labels = getattr(config, "num_labels", None)
    if not isinstance(labels, int):
        raise InvalidArgumentError(
            "layout must be given, DataMapCallback(layout=...): the model has no config.num_labels to read it from"
        )
    problem = getattr(config, "problem_type", None)
    if problem is None:
        one_of_many = not targets.is_floating_point() and (targets.dim() == 1 or targets.shape[1] == 1)
        multi = "single_label_classification" if one_of_many else "multi_label_classification"
        problem = "regression" if labels == 1 else multi
    if problem == "single_label_classification" and labels > 1:
        return TaskLayout(["label"], [labels])
    if problem == "multi_label_classification":
        names = getattr(config, "id2label", None) or {}
        return TaskLayout.binary([str(names.get(i, f"LABEL_{i}")) for i in range(labels)])
    raise InvalidArgumentError(
        f"the model must classify; its problem_type is {problem!r} with num_labels={labels}, which has no gold label. "
        "A head with one logit for a yes-or-no question has problem_type='multi_label_classification'"
    )


def logits_of(outputs: Any, names: Sequence[str]) -> Tensor:
    """Return the logits in a model's outputs, tasks side by side.

    ``outputs.logits`` or ``outputs["logits"]``, or the first entry of a tuple that is not the loss: a tensor, a dict
    by task name, or a sequence in the order of the tasks. `names` are those of the tasks.

    Raises
    ------
    InvalidTypeError
        If there are none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
        if found is None and all(name in outputs for name in names):
            found = outputs
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, (tuple, list)):
        found = next((one for one in outputs if not (isinstance(one, Tensor) and one.dim() == 0)), None)
    if isinstance(found, Mapping) and all(name in found for name in names):
        found = [found[name] for name in names]
    if isinstance(found, (tuple, list)) and found and all(isinstance(one, Tensor) for one in found):
        found = torch.cat([one.detach()[:, None] if one.dim() == 1 else one.detach() for one in found], dim=1)
    if not isinstance(found, Tensor):
        shown = f"the keys {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
        if isinstance(found, Mapping) and found is not outputs:
            shown += f" with logits by the names {list(found)}"
        raise InvalidTypeError(
            f"the model must return logits: a tensor, or one a task, by name or in order, of the tasks {list(names)} "
            f"that DataMapCallback(layout=...) names; got {shown}"
        )
    return found.detach()


def targets_of(inputs: Mapping[str, Any], label_names: Sequence[str], names: Sequence[str] = ()) -> Tensor | None:
    """Return the targets ``[B]`` or ``[B, T]`` in a batch, several label names side by side; None if one is absent.

    Where they are called as the tasks, in whatever order, they come in the order of the tasks' `names`; else in their
    own.

    Raises
    ------
    InvalidArgumentError
        If one of several is not one label a sample.
    """
    order = names if sorted(label_names) == sorted(names) else label_names
    parts = {name: inputs.get(name) for name in order}
    if not parts or any(not isinstance(part, Tensor) for part in parts.values()):
        return None
    if len(parts) == 1:
        return next(iter(parts.values()))
    columns = []
    for name, part in parts.items():
        assert part is not None
        if part.numel() != part.shape[0]:
            raise InvalidArgumentError(f"labels {name!r} must be [B], one of several tasks; got {list(part.shape)}")
        columns.append(part.reshape(-1))
    return torch.stack(columns, dim=1)
