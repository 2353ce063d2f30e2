"""pymtg's own warnings as lines on stderr; those of other packages stay as Python shows them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pymtg._cli.errors import in_flags
from pymtg._cli.ranks import rank_label

__all__ = ["warning_lines"]


@contextmanager
def warning_lines(flags: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Inside the block, show a warning whose class is pymtg's as a line, once.

    `flags` are those of the command at work, by its parameters' names.
    """
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category.__module__.partition(".")[0] == "pymtg":
            line = in_flags(" ".join(str(message).split()), flags())
            if line not in shown:  # Python forgets what it has shown whenever a library sets filters of its own
                shown.add(line)
                print(f"pymtg{rank_label()}: warning: {line}", file=sys.stderr)
        else:
            before(message, category, *rest, **more)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.showwarning = show
        yield
