"""What a run keeps of itself: when to save, what to save, and what was restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pymtg._ranges import span
from pymtg.trainers import _stopping
from pymtg.trainers._agreement import Agreement, Wish
from pymtg.trainers._checkpoints import CheckpointFolder, Position
from pymtg.trainers._interval import Interval
from pymtg.trainers._run_state import load_result, load_run, result_state, run_state
from pymtg.trainers._shared_state import Shares, epochs_logged
from pymtg.trainers.results import StageResult

if TYPE_CHECKING:
    from pymtg.trainers._run import Run

__all__ = ["FileKeeper", "Keeper"]

T = TypeVar("T")


class Keeper:
    """Follows a run from stage to stage; this one keeps nothing, and ends the run where a signal asks for it."""

    epochs_done = 0
    """Epochs that were restored, of all stages and networks together."""

    def __init__(self, agreement: Agreement | None = None) -> None:
        self.agreement = Agreement() if agreement is None else agreement

    def begin(self, run: Run) -> StageResult | None:
        """Restore a run that has just begun as far as it is known; return its result if it was finished."""
        self.agreement.meet(run, self.due)
        return None

    @contextmanager
    def following(self, run: Run) -> Iterator[None]:
        """Surround the epochs of a run."""
        with _stopping.attended():
            yield
            self._end_if(self.agreement.now().signal)

    def pause(self, run: Run) -> None:
        """Take note of the time between two batches."""
        self._end_if(self.agreement.between(run, self.due).signal)

    def epoch_done(self, run: Run) -> None:
        """Take note of the end of an epoch."""
        self._end_if(self.agreement.now().signal)

    def stage_done(self, run: Run, stage: StageResult) -> None:
        """Take note of a finished stage."""

    def computed(self, name: str, compute: Callable[[], T], pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> T:
        """Return what `compute` returns, or what it returned before the run was stopped: a stage without a network."""
        return compute()

    def due(self) -> bool:
        """Return whether it is time to save."""
        return False

    def knows_next_stage(self) -> bool:
        """Return whether the next stage was finished before the run was stopped."""
        return False

    def end_if_asked(self) -> None:
        """End the run where a signal is waiting."""
        self._end_if(self.agreement.now().signal)

    def _end_if(self, signal: int | None, saved: str | None = None) -> None:
        if signal is not None:
            raise _stopping.StopRequest(signal, saved, agreed=True)


class FileKeeper(Keeper):
    """Keeps checkpoints in a directory.

    Parameters
    ----------
    folder
        Where they are.
    interval
        When to save.
    keep
        How many positions to be able to go back to.
    described
        What the run is, JSON-ready; saved with every checkpoint.
    start
        The position to go on from, and the states up to it: a finished stage each, and then the one that was at work,
        if any. From the beginning if None.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        interval: Interval,
        keep: int,
        described: dict[str, Any],
        start: tuple[Position, list[dict[str, Any]]] | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        super().__init__(agreement)
        self.folder, self.interval, self.keep, self.described = folder, interval, keep, described
        position, states = start if start is not None else ((0, 0, 0), [])
        self._restored = states[: position[0]]
        self._at_work = states[position[0]] if position[1:] != (0, 0) else None
        self.epochs_done = sum(epochs_logged(s, finished=i < position[0]) for i, s in enumerate(states))
        self.shares: Shares | None = None
        """Of a stage in which every rank trains a network of its own."""
        self._stage = 0
        self._unsaved: list[tuple[int, dict[str, Any]]] = []
        self._saved_at = time.monotonic()
        self._running = False

    def begin(self, run: Run) -> StageResult | None:
        """Restore the run from the checkpoint that was read, where that goes so far."""
        super().begin(run)
        if self._stage < len(self._restored):
            result = load_result(run, self._own(self._restored[self._stage]))
            self._restored[self._stage] = {}  # its memory is needed no more
            self._stage += 1
            return result
        if self._at_work is not None:
            load_run(run, self._own(self._at_work))
            self._at_work = None
        return None

    @contextmanager
    def following(self, run: Run) -> Iterator[None]:
        """Surround the epochs of a run."""
        with super().following(run):
            self._running = True
            yield
            self._running = False

    def pause(self, run: Run) -> None:
        """Save if a signal asks for it (and end the run), or the interval."""
        self._heed(run, self.agreement.between(run, self.due))

    def epoch_done(self, run: Run) -> None:
        """Save if a signal asks for it (and end the run), or the interval."""
        epoch = len(run.history)
        if epoch < run.job.epochs and self.interval.due_after(epoch):
            self._save(run)
        wish = self.agreement.now(self.due)
        if epoch < run.job.epochs or wish.signal is not None:
            self._heed(run, wish)

    def knows_next_stage(self) -> bool:
        """Return whether the next stage was finished before the run was stopped."""
        return self._stage < len(self._restored)

    def due(self) -> bool:
        """Return whether the interval's time has passed."""
        return self.interval.due_since(self._saved_at)

    def stage_done(self, run: Run, stage: StageResult) -> None:
        """Keep the stage's result, and save it if the interval says so."""
        self._finish(self._packed(result_state(run, stage)))

    def computed(self, name: str, compute: Callable[[], T], pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> T:
        """Return what `compute` returned before the run was stopped, or call it and keep what it returns."""
        if self._stage < len(self._restored):
            self._stage += 1
            return unpack(self._restored[self._stage - 1]["value"])
        found = compute()
        self._finish({"name": name, "value": pack(found)})
        return found

    def save_finished(self) -> bool:
        """Save the stages that are finished, if none is at work; return whether there is anything to go on from."""
        if self._running:
            return bool(self.folder.positions())
        self._save_stages()
        return self._stage > 0

    def _finish(self, state: dict[str, Any]) -> None:
        self._unsaved.append((self._stage, state))
        self._stage += 1
        if self.interval.epochs is not None or self.agreement.now(self.due).save:
            self._save_stages()

    def _packed(self, state: dict[str, Any]) -> dict[str, Any]:
        return state if self.shares is None else self.shares.packed(state)

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        return state if self.shares is None else self.shares.own(state)

    def _heed(self, run: Run, wish: Wish) -> None:
        if wish.signal is not None or wish.save:
            self._save(run)
        self._end_if(wish.signal, str(self.folder.directory))

    def _save(self, run: Run) -> None:
        self._save_stages()
        self._write((self._stage, len(run.history), run.batch), self._packed(run_state(run)))

    def _save_stages(self) -> None:
        while self._unsaved:
            stage, state = self._unsaved[0]
            self._write((stage + 1, 0, 0), state)
            del self._unsaved[0]

    def _write(self, position: Position, state: dict[str, Any]) -> None:
        with span("checkpoint"):
            self.folder.write(position, {"run": self.described, "state": state})
            self.folder.prune(position, self.keep)
        self._saved_at = time.monotonic()
