"""Datasets that are held in memory, and batches that are fetched in one indexing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pymtg._checks import labels_there
from pymtg._layout_checks import check_task_order, missing_as_nan
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["IGNORE_INDEX", "ArrayTasks", "Batch", "collate", "from_arrays", "known_targets"]

IGNORE_INDEX = -100
"""What stands for a missing label in every dataset of :mod:`pymtg.data`."""

_KEPT_TARGET_DTYPES = (torch.uint8, torch.int32, torch.int64)


class Batch(Sequence[tuple[Any, ...]]):
    """Samples that already lie batched in tensors, and that still look like a list of samples.

    A ``DataLoader`` hands what ``__getitems__`` returned to its collate function. :func:`collate` takes the tensors
    as they are; torch's own ``default_collate`` sees a sequence of samples and stacks them as ever.

    Parameters
    ----------
    columns
        One tensor per field of a sample, each with B rows.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: tuple[Tensor, ...]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return int(self.columns[0].shape[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Batch(tuple(column[index] for column in self.columns))
        return tuple(column[index] for column in self.columns)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.columns, strict=True)


def collate(samples: Sequence[Any]) -> Any:
    """Collate like torch's ``default_collate``, without stacking again what was fetched as one :class:`Batch`.

    Parameters
    ----------
    samples
        A list of samples, or what the ``__getitems__`` of :class:`ArrayTasks` (or of a ``Subset`` of one, or of
        :func:`pymtg.data.with_ids` around either) returned.

    Returns
    -------
    The batched fields, ``[B, ...]`` each: a tuple for a :class:`Batch`, else what ``default_collate`` makes of them.
    """
    return samples.columns if isinstance(samples, Batch) else default_collate(list(samples))


class ArrayTasks(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of ``(input [...], targets [T])`` that is held in two tensors. Build it with :func:`from_arrays`.

    Parameters
    ----------
    inputs
        ``[M, ...]``.
    targets
        ``[M, T]`` integers, -100 where a label is missing. Floating for a layout with regression tasks: class numbers
        too, NaN where anything is missing.
    layout
        The T tasks.

    Attributes
    ----------
    inputs, targets, layout
        As given.

    Raises
    ------
    InvalidArgumentError
        If the shapes do not fit one another or a label is out of its task's range.
    InvalidTypeError
        If the inputs or targets are not tensors, or the targets not of the dtype that the layout asks for.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, layout: TaskLayout) -> None:
        _check_tensors(inputs, targets, layout)
        self.inputs = inputs
        self.targets = targets
        self.layout = layout

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the samples at `indices`, fetched in one indexing; the ``DataLoader`` calls this by itself."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        return Batch((self.inputs[at], self.targets[at]))

    def take(self, rows: Tensor) -> ArrayTasks:
        """Return a dataset of the samples at int64 `rows`, copied, that hands them out as this one does."""
        return ArrayTasks(self.inputs[rows], self.targets[rows], self.layout)

    def __repr__(self) -> str:
        return f"ArrayTasks({len(self)} samples of shape {tuple(self.inputs.shape[1:])}, {self.layout.num_tasks} tasks)"


def from_arrays(
    inputs: npt.ArrayLike | Tensor,
    targets: npt.ArrayLike | Tensor,
    layout: TaskLayout | None = None,
    *,
    names: Sequence[str] | None = None,
) -> ArrayTasks:
    """Make a dataset of arrays or tensors.

    Parameters
    ----------
    inputs
        ``[M, ...]`` numbers. Floating inputs become torch's default dtype (float32 unless it was set otherwise);
        integers stay what they are. Memory is shared with the caller where no conversion is needed.
    targets
        ``[M, T]`` class numbers. A missing label is NaN in a floating array, -100 in any, masked in one of NumPy's
        masked arrays, NA in a data frame. uint8, int32 and int64 stay what they are, everything else becomes int64.
        The columns of a data frame, where they are the tasks' names, must be in their order.
        With a layout that has regression tasks: numbers, which become torch's default dtype, NaN where missing (for a
        classification task -100, too).
    layout
        The tasks; read off the targets by :meth:`pymtg.TaskLayout.from_targets` if not given. Give the training
        set's layout when making the matching test set: a class may be absent there.
    names
        The tasks' names where no layout is given; ``task0, task1, ...`` by default.

    Raises
    ------
    InvalidArgumentError
        For wrong shapes, no samples, inputs that are masked or not finite, labels that are fractions, negative or too
        large for their task, or `names` beside a `layout`.
    InvalidTypeError
        For arrays that do not hold numbers.

    Examples
    --------
    >>> data = from_arrays([[0.0, 1.0], [2.0, 3.0]], [[0, 2], [1, float("nan")]], names=["odd", "digit"])
    >>> data[1]
    (tensor([2., 3.]), tensor([   1, -100]))
    >>> data.layout.num_classes
    (1, 3)
    """
    if layout is not None and names is not None:
        raise InvalidArgumentError("names must not be given beside a layout, which has its own")
    features = _checked_inputs(inputs)
    if isinstance(layout, TaskLayout):
        check_task_order(targets, layout.names)
    if isinstance(layout, TaskLayout) and layout.has_regression:
        return ArrayTasks(features, as_tensor(targets, "targets").to(torch.get_default_dtype()), layout)
    labels = _checked_targets(targets)
    if layout is None:
        layout = TaskLayout.from_targets(labels, names)
        check_task_order(targets, layout.names, "names")
    return ArrayTasks(features, labels, layout)


def known_targets(targets: Tensor, layout: TaskLayout) -> Tensor:
    """Return where a label is there, bool, in the shape of `targets` ``[..., T]``, integers or floating."""
    if not targets.is_floating_point():
        return labels_there(targets, IGNORE_INDEX)
    regression = torch.tensor([kind == "regression" for kind in layout.kinds], device=targets.device)
    return ~targets.isnan() & (regression | (targets != IGNORE_INDEX))


def as_tensor(values: Any, what: str) -> Tensor:
    """Return a plain tensor of real numbers, which shares the caller's memory where torch can."""
    if isinstance(values, Tensor):
        check_plain(values, what)
        tensor = values.detach()
    else:
        array = as_numbers(values, what)
        # torch shares memory with numpy, and refuses to do so silently where the array is read-only
        tensor = torch.from_numpy(array if array.flags.writeable and _torch_takes(array) else _plain(array))
    if tensor.is_complex():
        raise InvalidTypeError(f"{what} must hold real numbers; got dtype {tensor.dtype}")
    return tensor


def check_plain(tensor: Tensor, what: str) -> None:
    """Raise InvalidTypeError for tensors that hold no numbers one by one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise InvalidTypeError(f"{what} must be an array or a plain dense tensor; got a {kind} tensor")


def is_sparse(values: Any) -> bool:
    """Return whether these are one of SciPy's sparse matrices, which NumPy takes for a single object."""
    return hasattr(values, "tocsr") and hasattr(values, "toarray")


def as_numbers(values: Any, what: str) -> np.ndarray[Any, Any]:
    """Return an array of numbers; what is masked, or NA in a data frame, is missing, which inputs must not be."""
    if is_sparse(values):
        raise InvalidTypeError(f"{what} must be a dense array, as toarray() makes one; got a {type(values).__name__}")
    if what == "inputs" and np.ma.is_masked(values):
        row = int(np.argwhere(np.ma.getmaskarray(values))[0][0])
        raise InvalidArgumentError(f"inputs must not be masked; sample {row} is, in part")
    try:
        array = np.asarray(missing_as_nan(values))
    except ValueError as error:  # ragged nested lists
        raise InvalidArgumentError(f"{what} must be a rectangular array; {error}") from None
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{what} must hold numbers; got dtype {array.dtype}")
    return array


def _torch_takes(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.isnative and array.dtype != np.longdouble and all(stride >= 0 for stride in array.strides)


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    return np.array(array, dtype=dtype, order="C")


def _checked_inputs(inputs: Any) -> Tensor:
    tensor = as_tensor(inputs, "inputs")
    if tensor.ndim < 2:
        raise InvalidArgumentError(
            f"inputs must be [samples, ...] with at least 2 dimensions; got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.get_default_dtype())
    finite = torch.isfinite(tensor).flatten(1).all(1)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise InvalidArgumentError(f"inputs must be finite in {tensor.dtype}; sample {row} holds NaN or infinity")
    return tensor


def _checked_targets(targets: Any) -> Tensor:
    tensor = as_tensor(targets, "targets")
    if not tensor.is_floating_point():
        return tensor if tensor.dtype in _KEPT_TARGET_DTYPES else tensor.to(torch.int64)
    known = torch.where(torch.isnan(tensor), IGNORE_INDEX, tensor)
    wrong = torch.isinf(known) | (known != torch.floor(known))
    if bool(wrong.any()):
        value = known[wrong][0].item()
        raise InvalidArgumentError(f"targets must be class numbers, or NaN where missing; found {value}")
    return known.to(torch.int64)


def _check_tensors(inputs: Any, targets: Any, layout: Any) -> None:
    for what, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"{what} must be a tensor; got {type(value).__name__} (from_arrays converts)")
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    if targets.is_complex() or targets.is_floating_point() != layout.has_regression:
        wanted = "floating point, the layout has regression tasks" if layout.has_regression else "integers"
        raise InvalidTypeError(f"targets must be {wanted}; got {targets.dtype}")
    if targets.ndim != 2 or targets.shape[1] != layout.num_tasks:
        raise InvalidArgumentError(
            f"targets must be [samples, {layout.num_tasks}], a column a task; got {tuple(targets.shape)}"
        )
    if inputs.ndim == 0 or inputs.shape[0] != targets.shape[0]:
        raise InvalidArgumentError(
            f"inputs and targets must have as many rows; got {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if targets.shape[0] == 0:
        raise InvalidArgumentError("inputs must hold at least one sample; got none")
    if layout.has_regression:
        _check_numbers(targets, layout)
    else:
        _check_range(targets, layout)


def _check_numbers(targets: Tensor, layout: TaskLayout) -> None:
    infinite = targets.isinf()
    if bool(infinite.any()):
        row, task = torch.nonzero(infinite)[0].tolist()
        raise InvalidArgumentError(
            f"targets must be finite, or NaN where missing; sample {row} of task {layout.names[task]!r} holds infinity"
        )
    classes = [t for t in range(layout.num_tasks) if layout.kinds[t] == "classification"]
    if not classes:
        return
    labels = targets[:, classes]
    fractions = ~labels.isnan() & (labels != labels.floor())
    if bool(fractions.any()):
        row, column = torch.nonzero(fractions)[0].tolist()
        raise InvalidArgumentError(
            f"targets of the classification task {layout.names[classes[column]]!r} must be class numbers; "
            f"sample {row} holds {labels[row, column].item()}"
        )
    _check_range(torch.where(labels.isnan(), IGNORE_INDEX, labels).long(), layout.select(classes))


def _check_range(targets: Tensor, layout: TaskLayout) -> None:
    highest = torch.tensor([max(count, 2) for count in layout.num_classes], device=targets.device) - 1
    if bool((targets.amax(0) <= highest).all()) and bool((targets.amin(0) >= 0).all()):
        return  # complete labels, the common case, without a temporary of their size
    values = targets.to(torch.int64)
    wrong = (values > highest) | ((values < 0) & (values != IGNORE_INDEX))
    if bool(wrong.any()):
        row, task = torch.nonzero(wrong)[0].tolist()
        raise InvalidArgumentError(
            f"targets of task {layout.names[task]!r} must lie in 0..{int(highest[task])}, or be {IGNORE_INDEX} where "
            f"missing; sample {row} holds {int(values[row, task])}"
        )
