"""What a run is asked to do between two batches: to end, by a signal, or to save, by the clock. Ranks agree on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from pymtg._ranks import Ranks
from pymtg.trainers import _stopping

if TYPE_CHECKING:
    from pymtg.trainers._run import Run

__all__ = ["Agreement", "RankedAgreement", "Wish"]

_SIGNALS = (2, 15)  # SIGINT and SIGTERM; where ranks have got both, the second counts


class Wish(NamedTuple):
    """The number of the signal that asks the run to end, None for none; and whether it is time to save."""

    signal: int | None
    save: bool

    def numbers(self) -> list[int]:
        """Return the wish as counts that ranks add up."""
        return [*(int(self.signal == number) for number in _SIGNALS), int(self.save)]

    @classmethod
    def of(cls, numbers: list[int]) -> Wish:
        """Return the wish of all ranks from the sums of their numbers."""
        *signals, save = numbers
        asked = [number for number, ranks in zip(_SIGNALS, signals, strict=True) if ranks]
        return cls(asked[-1] if asked else None, save > 0)


class Agreement:
    """Of one process with itself."""

    def meet(self, run: Run, due: Callable[[], bool]) -> None:
        """Take note of a run that begins; `due` tells whether it is time to save."""

    def between(self, run: Run, due: Callable[[], bool]) -> Wish:
        """Return the wish between two batches."""
        return self.now(due)

    def now(self, due: Callable[[], bool] = lambda: False) -> Wish:
        """Return the wish at a point that all ranks come to."""
        return Wish(_stopping.asked(), due())


class RankedAgreement(Agreement):
    """Of all ranks: what one of them is asked for, all do, after the same batch."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def meet(self, run: Run, due: Callable[[], bool]) -> None:
        """Let a run's batches carry this rank's wish to the others; time goes by rank 0's clock."""
        if run.ranked is not None:
            run.ranked.wish = lambda: Wish(_stopping.asked(), self.ranks.leads and due())

    def between(self, run: Run, due: Callable[[], bool]) -> Wish:
        """Return what came with the last batch."""
        return Wish(None, False) if run.ranked is None else run.ranked.agreed()

    def now(self, due: Callable[[], bool] = lambda: False) -> Wish:
        """Ask the others, and wait for them."""
        own = Wish(_stopping.asked(), self.ranks.leads and due())
        found: list[int] = self.ranks.sum_(torch.tensor(own.numbers())).tolist()
        return Wish.of(found)
