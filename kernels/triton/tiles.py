"""How the tasks of a layout are cut into tiles: what one program of a kernel works on.

A tile is a run of adjacent tasks, padded to one number of classes, a power of two: ``[rows, tasks, classes]`` with
masks. Adjacent, so that a tile reads adjacent logits, targets and results. A task of more than ``WIDEST`` classes is a
tile of its own, read in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 1024
"""Most classes of a task that is held in registers whole."""
WIDE = 15
"""In the place of log2(padded classes): a task read in chunks."""
LANES = 512
"""Logits of one row in a tile, at most; but one task at least."""
_LEAST_USED = 1 / 3  # of a tile's lanes; below it, a new tile costs less


@dataclass(frozen=True)
class Plan:
    """What the kernels need to know of a layout, on one device."""

    num_tasks: int
    num_logits: int
    tiles: Tensor
    """int32 ``[tiles, 3]``: first task, tasks, log2 of the padded classes (or WIDE)."""
    offsets: Tensor
    """First column of every task and the number of columns, int64 ``[T + 1]``."""
    weights: Tensor | None
    """Weight of every label, all tasks' one after the other, float64; None where all are one."""
    first_weight: Tensor | None
    """Where in `weights` a task's are, int64 ``[T]``."""
    shapes: int
    """Four bits for every log2 of the padded classes that occurs: one more than log2 of the tasks in such a tile."""
    most_lanes: int
    """Lanes of a row in the largest tile."""
    mixed: bool
    """Whether a one-logit task stands in a tile of larger ones."""

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return self.tiles.shape[0]


def make_plan(
    num_classes: Sequence[int],
    pos_weight: Sequence[float] | None,
    class_weights: Sequence[Sequence[float]] | None,
    device: torch.device,
) -> Plan:
    """Return the plan of a layout, given its classes and, where it has them, all positive and all class weights."""
    tiles = cut(num_classes)
    sizes: dict[int, int] = {}
    for _, tasks, pad in tiles:
        sizes[pad] = max(sizes.get(pad, 1), _log2(tasks))
    offsets = torch.tensor([0, *num_classes]).cumsum(0)
    weights, first = _label_weights(num_classes, pos_weight, class_weights)
    return Plan(
        num_tasks=len(num_classes),
        num_logits=int(offsets[-1]),
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device),
        offsets=offsets.to(device),
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float64, device=device),
        first_weight=None if weights is None else torch.tensor(first, dtype=torch.int64, device=device),
        shapes=sum((tasks + 1) << 4 * pad for pad, tasks in sizes.items()),
        most_lanes=max(LANES if pad == WIDE else 1 << (pad + tasks) for pad, tasks in sizes.items()),
        mixed=any(pad > 0 and 1 in num_classes[t : t + tasks] for t, tasks, pad in tiles),
    )


def cut(num_classes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut the tasks into tiles (first task, tasks, log2 of the padded classes)."""
    tiles: list[tuple[int, int, int]] = []
    first, used, pad = 0, 0, 0
    for t, classes in enumerate(num_classes):
        tasks = t - first
        together = max(pad, _log2(classes))
        fits = classes <= WIDEST and pad != WIDE and 1 << (_log2(tasks + 1) + together) <= LANES
        if tasks and not (fits and used + classes >= _LEAST_USED * ((tasks + 1) << together)):
            tiles.append((first, tasks, pad))
            first, used, pad = t, 0, 0
        used += classes
        pad = WIDE if classes > WIDEST else max(pad, _log2(classes))
    tiles.append((first, len(num_classes) - first, pad))
    return tiles


def _log2(count: int) -> int:
    """Return log2 of the power of two from `count` on."""
    return (count - 1).bit_length()


def _label_weights(
    num_classes: Sequence[int], pos_weight: Sequence[float] | None, class_weights: Sequence[Sequence[float]] | None
) -> tuple[list[float] | None, list[int]]:
    if pos_weight is None and class_weights is None:
        return None, []
    flat: list[float] = []
    first: list[int] = []
    for t, classes in enumerate(num_classes):
        first.append(len(flat))
        if classes == 1:
            flat += (1.0, 1.0 if pos_weight is None else pos_weight[t])
        else:
            flat += (1.0,) * classes if class_weights is None else class_weights[t]
    return flat, first
