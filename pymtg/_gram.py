"""Gram matrices of a few points in very many dimensions, accumulated block by block in float64.

``gram_add(gram, block, *, points_as_rows=False)`` adds a block of features to ``gram`` in place. A data map's planes
``[M, T]`` (samples as rows, tasks as columns) are such blocks as they lie in memory::

    gram = new_gram(T)
    for plane in (data_map.mean, data_map.std):
        gram_add(gram, plane)

Each feature is centred over the points before it is multiplied, by a mean taken in float64, and products are summed
in float64: the squared distance of two points that differ by 1e-4 in each feature keeps nine digits. The result does
not depend on the number of threads, and points that are equal get rows that are equal bit for bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pymtg import _core
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["as_float_array", "gram_add", "gram_matrix", "new_gram"]

Float64Array: TypeAlias = npt.NDArray[np.float64]


def as_float_array(values: object, name: str) -> npt.NDArray[np.float32] | Float64Array:
    """Return an array or tensor on the CPU as float32 or float64, without a copy where it is one of these already.

    Raises
    ------
    InvalidTypeError
        If the values are not real numbers.
    """
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.is_meta:
            raise InvalidTypeError(f"{name} must be an array or a dense tensor; got a tensor of {values.layout}")
        values = values.detach().cpu()
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        values = values.numpy()
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name} must be real numbers; got dtype {array.dtype}")
    return array.astype(np.float64)


def new_gram(n: int) -> Float64Array:
    """Return the Gram matrix ``[n, n]`` of n points without features, to add blocks to."""
    return np.zeros((n, n))


def gram_add(gram: Float64Array, block: npt.ArrayLike | torch.Tensor, *, points_as_rows: bool = False) -> None:
    """Add a block's centred inner products to a Gram matrix, in place.

    ``gram += Z.T @ Z`` where ``Z[f, i] = x[f, i] - mean_i x[f, i]``.

    Parameters
    ----------
    gram
        ``[n, n]`` float64, C-contiguous and symmetric.
    block
        ``[features, n]`` (or ``[n, features]`` with `points_as_rows`): an array or tensor whose rows are contiguous;
        float32 and float64 are read as they are, anything else real is converted first.
    points_as_rows
        Whether the points are the rows (a data matrix) or the columns (a data map's plane).

    Raises
    ------
    InvalidArgumentError
        If the shapes do not fit or `gram` is not a writable C-contiguous matrix.
    InvalidTypeError
        If `gram` is not a float64 array or the block is not real.
    """
    if not isinstance(gram, np.ndarray) or gram.dtype != np.float64:
        raise InvalidTypeError(f"gram must be a float64 NumPy array; got {getattr(gram, 'dtype', type(gram).__name__)}")
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.flags.c_contiguous or not gram.flags.writeable:
        raise InvalidArgumentError(f"gram must be a writable, C-contiguous square matrix; got shape {gram.shape}")
    array: npt.NDArray[Any] = as_float_array(block, "block")
    if array.ndim != 2 or array.shape[0 if points_as_rows else 1] != gram.shape[0]:
        axes = "[n, features]" if points_as_rows else "[features, n]"
        raise InvalidArgumentError(f"block must be {axes} with n = {gram.shape[0]} points; got shape {array.shape}")
    if array.size == 0:
        return
    if array.shape[1] > 1 and array.strides[1] != array.itemsize:
        array = np.ascontiguousarray(array)
    _core.gram_add(gram, array, points_as_rows, torch.get_num_threads())


def gram_matrix(points: npt.ArrayLike | torch.Tensor) -> Float64Array:
    """Return the centred Gram matrix ``[n, n]`` of points ``[n, D]`` (see :func:`gram_add`)."""
    array = as_float_array(points, "points")
    gram = new_gram(array.shape[0])
    gram_add(gram, array, points_as_rows=True)
    return gram
