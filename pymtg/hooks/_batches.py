"""The batch at hand, and those of loops that stand around the one that is running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pymtg.errors import MissingLabelError
from pymtg.hooks._errors import RecordingError
from pymtg.hooks._reading import Part
from pymtg.hooks._sources import Source

__all__ = ["AtHand", "Batch", "Turn", "check_seen"]


@dataclass
class Batch:
    """A batch: its ids, its targets where a model is hooked, and the tasks seen so far."""

    ids: Tensor
    targets: Tensor | None = None
    repeats: int = 0
    parts: dict[str, Part] = field(default_factory=dict)


class Turn:
    """One iteration over a loader; `kept` is its batch, and whether that was used, while one inside it is open."""

    kept: tuple[Batch | None, bool] = (None, False)


class AtHand:
    """Which batch the next forward is about.

    Loops over :meth:`Recorder.batches` may stand inside one another: the batch of each but the innermost is put aside
    until that one is closed.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.used = False
        """Whether the last ids served a forward."""
        self._turns: list[Turn] = []  # the loops that are open, the inner ones last
        self._left: list[Batch] = []  # batches of loops that were left before all of their tasks were seen

    def discard(self) -> None:
        """Forget the batch at hand."""
        self.batch, self.used = None, False

    def taken(self) -> list[Batch]:
        """Return what is to be recorded of loops that were left and of the batch at hand, and forget both."""
        batches, self._left = [*self._left, self.batch], []
        self.discard()
        return [batch for batch in batches if batch is not None and batch.parts]

    def forget_left(self) -> None:
        """Forget the batches of loops that were left."""
        self._left.clear()

    def forget_loops(self) -> None:
        """Take no loop for open any more."""
        self._turns.clear()

    def begin(self, turn: Turn) -> None:
        """Get ready for the next batch of a loop; with its first one, the batch of the loop around it is put aside."""
        self._check_innermost(turn)
        if turn not in self._turns:
            if self._turns:
                self._turns[-1].kept = self.batch, self.used
                self.discard()
            self._turns.append(turn)

    def is_last_of(self, turn: Turn) -> bool:
        """Whether the batch at hand is the last one of a loop that has come to its end."""
        self._check_innermost(turn)
        return turn in self._turns or not self._turns

    def close(self, turn: Turn) -> None:
        """Put the batch of the loop around this one back. Without one, the batch at hand stays: this raises nothing."""
        if turn not in self._turns:
            return
        innermost = self._turns[-1] is turn
        self._turns.remove(turn)
        left = turn.kept[0]
        if innermost and self._turns:
            left = self.batch
            self.batch, self.used = self._turns[-1].kept
        elif innermost:
            return
        if left is not None and left.parts:
            self._left.append(left)

    def _check_innermost(self, turn: Turn) -> None:
        if turn in self._turns and self._turns[-1] is not turn:
            raise RecordingError(
                "a loop over recorder.batches(...) went on while one that began after it is still open, whose ids are "
                "at hand: two of them cannot take turns, as in zip. End or close() the inner one first, or call "
                "recorder.ids(ids) before each forward"
            )


def check_seen(batch: Batch, names: Sequence[str], sources: Sequence[Source], *, missing: bool) -> None:
    """Raise unless a batch of which some tasks were seen can be recorded as it is."""
    unseen = [name for name in names if name not in batch.parts]
    for source in sources:
        own = [reader.name for reader in source.readers]
        if len(own) > 1 and 0 < sum(name in unseen for name in own) < len(own):
            raise RecordingError(
                f"the loss shared by {own} was called {sum(name not in unseen for name in own)} times for a batch; "
                f"with in_order=True it must be called for all {len(own)}"
            )
    if unseen and not missing:
        raise MissingLabelError(
            f"the batch ended without a call of the loss of {unseen[:6]}, and the data map was built for complete "
            "labels; pass missing=True if the loop skips tasks, or call recorder.discard() after a failed step"
        )
