"""One data set ready for training: its tasks and its parts."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from pymtg.data.indexed import check_map_style
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["TaskData"]


@dataclass(frozen=True, repr=False)
class TaskData:
    """Tasks with their training, test and (where there is one) validation set.

    Parameters
    ----------
    name
        A short name, for titles and file names.
    layout
        The T tasks, the same in every part.
    train, test, val
        Map-style datasets of ``(input [...], targets [T])``; `val` may be None.
    target_mean, target_scale
        Where a reader standardised regression targets: T numbers with which
        ``target * target_scale + target_mean`` is the target as the file has it; else None.

    Raises
    ------
    InvalidArgumentError
        If the name is empty, a part has no samples or its first sample's targets do not fit the layout.
    InvalidTypeError
        If the layout is not a :class:`pymtg.TaskLayout` or a part is not a map-style dataset.
    """

    name: str
    layout: TaskLayout
    train: Dataset[Any]
    test: Dataset[Any]
    val: Dataset[Any] | None = None
    target_mean: tuple[float, ...] | None = None
    target_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidArgumentError(f"name must be a non-empty string; got {self.name!r}")
        if not isinstance(self.layout, TaskLayout):
            raise InvalidTypeError(f"layout must be a TaskLayout; got {type(self.layout).__name__}")
        for part, dataset in self.parts.items():
            _check_part(part, dataset, self.layout)
        for name in ("target_mean", "target_scale"):
            figures = getattr(self, name)
            if figures is not None and len(figures) != self.layout.num_tasks:
                raise InvalidArgumentError(
                    f"{name} must have one entry per task ({self.layout.num_tasks}); got {len(figures)}"
                )

    @property
    def parts(self) -> dict[str, Dataset[Any]]:
        """The datasets by name: train, test, and val where there is one."""
        parts = {"train": self.train, "test": self.test, "val": self.val}
        return {part: dataset for part, dataset in parts.items() if dataset is not None}

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""
        return self.layout.num_tasks

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, as the first training sample has it."""
        return tuple(self.train[0][0].shape)

    @property
    def num_features(self) -> int:
        """How many numbers one input holds: the input width of a network that takes it flattened."""
        return math.prod(self.input_shape)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part}={_size(dataset)}" for part, dataset in self.parts.items())
        return f"TaskData({self.name!r}, {self.num_tasks} tasks, input_shape={self.input_shape}, {sizes})"


def _size(dataset: Dataset[Any]) -> int:
    assert isinstance(dataset, Sized)  # check_map_style saw to it
    return len(dataset)


def _check_part(part: str, dataset: Dataset[Any], layout: TaskLayout) -> None:
    check_map_style(dataset, part)
    if _size(dataset) == 0:
        raise InvalidArgumentError(f"{part} must hold at least one sample; got none")
    sample = dataset[0]
    if not isinstance(sample, (tuple, list)) or len(sample) != 2 or not all(isinstance(x, Tensor) for x in sample):
        raise InvalidTypeError(f"{part} must yield (input, targets) tensors; its first sample is {_described(sample)}")
    if tuple(sample[1].shape) != (layout.num_tasks,):
        raise InvalidArgumentError(
            f"{part} must yield one target per task ({layout.num_tasks}); its first sample has {tuple(sample[1].shape)}"
        )


def _described(sample: Any) -> str:
    if isinstance(sample, (tuple, list)):
        return f"a {type(sample).__name__} of {[type(field).__name__ for field in sample]}"
    return f"of type {type(sample).__name__}"
