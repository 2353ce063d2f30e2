"""Entry point of the command ``pymtg``: it runs without the command line's extra, to say that it is missing."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 2: the call, a file or a directory is at fault, with one line on stderr that says which. 130:
    interrupted. 143: terminated. 1: another rank of a distributed run is lost.

    Parameters
    ----------
    arguments
        The words after ``pymtg``; by default those of this process.
    """
    if arguments is None:
        _own_process()
    try:
        importlib.import_module("rich")  # the commands want it late, when hours have been spent
        from pymtg._cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"pymtg: the command line needs {error.name}: pip install 'pymtg[cli]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)


def _own_process() -> None:
    """Settle what the process as a whole has: standard streams that were closed, and matplotlib's canvas.

    The commands write pictures to files only. A notebook leaves a canvas of its own in the environment of what it
    starts, and matplotlib cannot be imported where that canvas is not installed.
    """
    os.environ["MPLBACKEND"] = "agg"
    # In this order: each takes the lowest number that is free, its own, which a file of results would get otherwise.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
