"""Handwritten digits as fifteen binary tasks: small, real, and shipped with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg.data._split import split_rows
from pymtg.data.arrays import ArrayTasks, from_arrays
from pymtg.data.taskdata import TaskData
from pymtg.tasks import TaskLayout

__all__ = ["TASK_NAMES", "digits"]

TASK_NAMES = (*(f"is-{digit}" for digit in range(10)), "has-loop", "odd", "flipped", "no-loop", "random")
_WITH_LOOP = (0, 6, 8, 9)


def digits(seed: int = 0, *, test_size: float = 1 / 3, val_size: float = 0.0) -> TaskData:
    """Load scikit-learn's 1,797 handwritten digits as 15 binary tasks.

    The tasks follow set G2 of STG-MTL (Sherif et al. 2024, arXiv 2307.03374), which was made of MNIST: ``is-0`` to
    ``is-9`` (one digit against the rest), ``has-loop`` (0, 6, 8, 9), ``odd``, ``flipped`` (half of the images, drawn
    by `seed`, really are turned upside down; the label says which), ``no-loop``, and ``random`` (a coin thrown once
    per image by `seed`: nothing can be learnt of it but by heart).

    Parameters
    ----------
    seed
        Draws the split, the flipped images and the coins, each from a stream of its own: the images and labels of
        one seed do not depend on the sizes.
    test_size, val_size
        Shares of the 1,797 images, each below 1, stratified by digit. With `val_size` 0 there is no validation set.

    Returns
    -------
    Inputs ``[64]`` float32 in 0..1 (8 x 8 pixels, row by row), targets ``[15]`` int64.

    Raises
    ------
    InvalidArgumentError
        For a negative seed, or sizes that leave a part too small for ten strata.
    """
    from sklearn.datasets import load_digits

    images, digit = load_digits(return_X_y=True)
    parts = split_rows(len(digit), seed, test_size=test_size, val_size=val_size, strata=digit)
    flipped, coin = _draws(seed, len(digit))
    pixels = images.reshape(-1, 8, 8) / 16.0
    pixels[flipped] = pixels[flipped, ::-1]
    inputs = pixels.reshape(-1, 64).astype(np.float32)
    targets = _labels(digit, flipped, coin)
    layout = TaskLayout.binary(TASK_NAMES)

    def part(rows: npt.NDArray[np.int64]) -> ArrayTasks:
        return from_arrays(inputs[rows], targets[rows], layout)

    val = part(parts.val) if parts.val is not None else None
    return TaskData("digits", layout, part(parts.train), part(parts.test), val)


def _draws(seed: int, count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    flips, coins = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    return flips.permutation(count) < count // 2, coins.random(count) < 0.5


def _labels(
    digit: npt.NDArray[Any], flipped: npt.NDArray[np.bool_], coin: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    loop = np.isin(digit, _WITH_LOOP)
    columns = [*(digit == d for d in range(10)), loop, digit % 2 == 1, flipped, ~loop, coin]
    return np.stack(columns, axis=1).astype(np.int64)
