"""What ranks tell each other with a batch: how many labels each has of every task, and what it is asked to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pymtg._ranks import Ranks
from pymtg.data.arrays import known_targets
from pymtg.tasks import TaskLayout
from pymtg.trainers._agreement import Wish

__all__ = ["Mail"]

_SECONDS = 0.5  # between wishes, about: reading them makes the host wait for the device


class Mail:
    """One sum over the ranks, begun before a batch's forward pass and read when it is needed.

    Wishes are read after so many batches as rank 0 takes half a second for; by its figure, so that all ranks read the
    same ones.
    """

    def __init__(self, ranks: Ranks, layout: TaskLayout | None = None) -> None:
        self.ranks, self.layout = ranks, layout
        self._left, self._pace = 0, 1
        self._since = time.monotonic()
        self._own: Tensor | None = None
        self._total: Tensor | None = None
        self._wait: Callable[[], None] | None = None
        self._unread = False

    def send(self, targets: Tensor | None, wish: Callable[[], Wish]) -> None:
        """Begin the sum: of the labels there are in `targets`, if any are given, and of wishes, if it is time."""
        self._unread = self._left == 0
        self._left = self._pace if self._unread else self._left
        self._left -= 1
        self._wait = None
        if targets is None and not self._unread:
            return
        numbers = torch.tensor([*wish().numbers(), self._batches_a_wish() if self._unread else 0])
        if targets is None:
            self._own = numbers
        else:
            assert self.layout is not None
            counts = known_targets(targets, self.layout).sum(0)
            self._own = torch.cat([counts, numbers.to(counts.device)])
        self._total = self._own.clone()
        self._wait = self.ranks.sum_async(self._total)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Return the labels of every task on this rank, and on all: [T] each."""
        own, total = self._received()
        return own[:-4], total[:-4]

    def wish(self) -> Wish:
        """Return what the ranks are asked to do, once."""
        if not self._unread:
            return Wish(None, False)
        self._unread = False
        *_, first, second, save, pace = self._received()[1].tolist()
        self._left += pace - self._pace
        self._pace = pace
        return Wish.of([first, second, save])

    def _received(self) -> tuple[Tensor, Tensor]:
        assert self._own is not None
        assert self._total is not None
        if self._wait is not None:
            self._wait()
            self._wait = None
        return self._own, self._total

    def _batches_a_wish(self) -> int:
        if not self.ranks.leads:
            return 0
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        return max(1, min(1000, int(self._pace * _SECONDS / max(seconds, 1e-6))))
