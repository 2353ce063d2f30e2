"""Ctrl-C and SIGTERM as a request: training goes on to the end of its batch, saves, and then ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "asked", "attended", "on_signals"]


class StopRequest(KeyboardInterrupt):
    """A signal has asked the process to end.

    ``number`` is the signal's; ``saved`` the directory of the checkpoint that was saved on the way, or None; ``agreed``
    whether it was raised where it can be attended to, on all ranks.
    """

    def __init__(self, number: int, saved: str | None = None, *, agreed: bool = False) -> None:
        super().__init__(number)
        self.number = number
        self.saved = saved
        self.agreed = agreed


class _Request:
    """The one request of this process; signals are the process's too."""

    number: int | None = None
    attended = False


@contextmanager
def on_signals() -> Iterator[None]:
    """Inside the block, turn SIGINT and SIGTERM into :class:`StopRequest`, raised where it can be attended to.

    A second signal does not wait. One that came where somebody swallowed the exception (an import that passes over all
    errors, a finalizer) is attended to all the same. A signal that the process ignores stays ignored; outside the main
    thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _take)
    try:
        yield
    finally:
        _Request.number = None
        for which, handler in before.items():
            signal.signal(which, handler)


@contextmanager
def attended() -> Iterator[None]:
    """Inside the block the first signal waits until somebody looks: see :func:`asked`."""
    before, _Request.attended = _Request.attended, True
    try:
        yield
    finally:
        _Request.attended = before


def asked() -> int | None:
    """Return the number of the signal that is waiting; None where none is."""
    return _Request.number


def _take(number: int, frame: FrameType | None) -> None:
    first = _Request.number is None
    if first:
        _Request.number = number  # also where it is raised: somebody may swallow that
    if not (_Request.attended and first):
        raise StopRequest(number)
