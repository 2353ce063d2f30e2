"""Words that depend on a number."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, noun: str, several: str | None = None) -> str:
    """Return a number with its noun: ``1 task``, ``3 tasks``; `several` where the plural has no plain s."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"
