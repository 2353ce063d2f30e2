"""Entry point of the command ``pymtg``: it runs without the command line's extra, to say that it is missing."""

from __future__ import annotations

import importlib
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
    try:
        importlib.import_module("rich")  # the commands want it late, when hours have been spent
        from pymtg._cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"pymtg: the command line needs {error.name}: pip install 'pymtg[cli]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
