"""Names for what a stretch of code does, read by whoever watches; nothing where nobody does.

Trainers, data maps and clustering say what they are at: ``with span("backward"): ...``. :func:`watched` sets who is
told, for the thread at work; without it :func:`span` returns one and the same empty block, and :func:`each` the
iterator itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

__all__ = ["Watch", "each", "span", "stage", "watched"]

T = TypeVar("T")


class Watch(Protocol):
    """Who is told of spans, stages and steps."""

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Surround a stage of a run; stages do not nest."""
        ...

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Surround a named stretch within a stage; spans nest."""
        ...

    def step(self) -> None:
        """Take note that the next batch is about to be read."""
        ...


_NOTHING = nullcontext()
_watch: ContextVar[Watch | None] = ContextVar("pymtg_watch", default=None)


def span(name: str) -> AbstractContextManager[Any]:
    """Return a block that tells whoever watches what goes on in it."""
    watch = _watch.get()
    return _NOTHING if watch is None else watch.span(name)


def stage(name: str) -> AbstractContextManager[Any]:
    """Return the block of one stage of a run."""
    watch = _watch.get()
    return _NOTHING if watch is None else watch.stage(name)


def each(name: str, items: Iterable[T]) -> Iterator[T]:
    """Return an iterator over items, each of which begins a step and is taken inside a span."""
    watch = _watch.get()
    return iter(items) if watch is None else _told(watch, name, iter(items))


def _told(watch: Watch, name: str, items: Iterator[T]) -> Iterator[T]:
    while True:
        watch.step()
        with watch.span(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside the block, tell `watch` of this thread's spans."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
