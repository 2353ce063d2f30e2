"""CIFAR-10 and CIFAR-100 as sets of binary tasks, as STG-MTL has them."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch

from pymtg.data._cifar_files import CIFAR10, CIFAR100, Images, read_cifar
from pymtg.data._split import check_seed, split_rows
from pymtg.data.pixels import PixelTasks
from pymtg.data.taskdata import TaskData
from pymtg.tasks import TaskLayout

__all__ = ["CIFAR10_CLASSES", "CIFAR10_TASKS", "CIFAR100_TASKS", "cifar10", "cifar100"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_TASKS = (*CIFAR10_CLASSES, "living", "odd", "flipped", "not-living", "random")
CIFAR100_TASKS = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy"),
    *("bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock"),
    *("cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish"),
    *("forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion"),
    *("lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange"),
    *("orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine"),
    *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk"),
    *("skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale"),
    *("willow_tree", "wolf", "woman", "worm"),
)

_LIVING = (2, 7)  # bird to horse
_FIGURES10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_FIGURES100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def cifar10(
    directory: str | os.PathLike[str], seed: int = 0, *, val_size: float = 0.0, balanced: bool = True
) -> TaskData:
    """Read CIFAR-10 from a folder as the 15 binary tasks of STG-MTL.

    ``airplane`` to ``truck`` (one class against the rest), ``living`` (bird to horse), ``odd`` (classes of an odd
    number), ``flipped`` (half of the images, drawn by `seed`, really are turned upside down; the label says which),
    ``not-living``, and ``random`` (a coin thrown once per image by `seed`).

    Parameters
    ----------
    directory
        Where ``cifar-10-batches-py`` or ``cifar-10-batches-bin`` stands, or one of them; nothing is downloaded.
    seed
        Draws the flips, the coins and the validation rows, each from a stream of its own.
    val_size
        Share of the training images to validate on, stratified by class; with 0 there is no validation set.
    balanced
        Whether positives weigh 10 in the loss of each of the ten class tasks, as in the released code.

    Returns
    -------
    Images ``[3, 32, 32]``, kept as bytes and handed out with the training set's mean and deviation of each channel
    taken off and divided by (:class:`pymtg.data.PixelTasks`); targets ``[15]`` uint8. Training and test set are those
    of the files.

    Raises
    ------
    FileNotFoundError
        If a file is not there; says which, and where the set is to be had.
    FileFormatError
        If a file is damaged, or a pickle asks for anything but arrays and plain values.
    InvalidArgumentError, InvalidTypeError
        For a bad seed or share.

    Notes
    -----
    Sherif et al. 2024, arXiv 2307.03374, and its released code, which differs in the numbers that are drawn; it turns
    images also where no task tells which. Mean and deviation of the channels are ours: the released code leaves
    transformations to its caller.
    """
    check_seed(seed)
    parts = read_cifar(directory, CIFAR10)
    layout = TaskLayout.binary(CIFAR10_TASKS, [10.0] * 10 + [None] * 5 if balanced else None)
    train, test = (_fifteen(part, [seed, stream]) for part, stream in zip(parts, (1, 2), strict=True))
    return _task_data("cifar10", layout, (train, test), parts[0].labels, _FIGURES10, seed, val_size)


def cifar100(
    directory: str | os.PathLike[str], seed: int = 0, *, val_size: float = 0.0, balanced: bool = True
) -> TaskData:
    """Read CIFAR-100 from a folder as 100 binary tasks, one class against the rest.

    Parameters
    ----------
    directory
        Where ``cifar-100-python`` or ``cifar-100-binary`` stands, or one of them; nothing is downloaded.
    seed
        Draws the validation rows.
    val_size
        As in :func:`cifar10`.
    balanced
        Whether positives weigh 99 in the loss, as in the released code.

    Returns
    -------
    As :func:`cifar10`, with targets ``[100]``.

    Raises
    ------
    FileNotFoundError, FileFormatError, InvalidArgumentError, InvalidTypeError
        As :func:`cifar10`.
    """
    check_seed(seed)
    parts = read_cifar(directory, CIFAR100)
    layout = TaskLayout.binary(CIFAR100_TASKS, [99.0] * 100 if balanced else None)
    train, test = (_Tasks(part.pixels, _one_hot(part.labels, 100)) for part in parts)
    return _task_data("cifar100", layout, (train, test), parts[0].labels, _FIGURES100, seed, val_size)


class _Tasks:
    """Images and their targets ``[N, T]``."""

    def __init__(self, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.uint8]) -> None:
        self.pixels, self.targets = torch.from_numpy(pixels), torch.from_numpy(targets)


def _fifteen(images: Images, stream: list[int]) -> _Tasks:
    """Turn half of the images over, in place, and return them with the 15 tasks' targets."""
    flips, coins = (np.random.default_rng([*stream, draw]) for draw in (1, 2))
    count = len(images.labels)
    flipped = flips.permutation(count) < count // 2
    images.pixels[flipped] = images.pixels[flipped, :, ::-1]
    living = (images.labels >= _LIVING[0]) & (images.labels <= _LIVING[1])
    odd, coin = images.labels % 2 == 1, coins.random(count) < 0.5
    groups = np.stack([living, odd, flipped, ~living, coin], axis=1)
    return _Tasks(images.pixels, np.concatenate([_one_hot(images.labels, 10), groups.astype(np.uint8)], axis=1))


def _one_hot(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint8]:
    targets: npt.NDArray[np.uint8] = (labels[:, None] == np.arange(count)).astype(np.uint8)
    return targets


def _task_data(
    name: str,
    layout: TaskLayout,
    parts: tuple[_Tasks, _Tasks],
    strata: npt.NDArray[np.int64],
    figures: tuple[tuple[float, ...], tuple[float, ...]],
    seed: int,
    val_size: float,
) -> TaskData:
    train, test = (PixelTasks(part.pixels, part.targets, layout, *figures) for part in parts)
    rows = split_rows(len(strata), seed, test_size=None, val_size=val_size, strata=strata)
    if rows.val is None:
        return TaskData(name, layout, train, test)
    kept, held_out = (train.take(torch.from_numpy(at)) for at in (rows.train, rows.val))
    return TaskData(name, layout, kept, test, held_out)
