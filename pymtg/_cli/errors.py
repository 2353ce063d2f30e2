"""What ends a command early, and how it is put in one line."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["CommandError", "StoppedError", "in_flags", "one_line", "require"]

# What the library calls otherwise than the commands do, and the command's parameter.
_OTHER_NAMES = {
    "n_clusters": "groups",
    "num_branches": "groups",
    "num_groups": "groups",
    "num_threads": "threads",
    "random_state": "seed",
    "spec": "data",
    "task_names": "names",
}


class CommandError(Exception):
    """The call cannot be served; the message is for the user, whole in itself."""


class StoppedError(Exception):
    """Ctrl-C or SIGTERM, under a name that typer does not handle by itself."""

    def __init__(self, stop: BaseException) -> None:
        super().__init__("interrupted")
        number, saved = getattr(stop, "number", signal.SIGINT), getattr(stop, "saved", None)
        self.code = 128 + number
        self.message = "interrupted" if number == signal.SIGINT else "terminated"
        if saved is not None:
            self.message += f"; saved in {saved}: the same command with --resume goes on from there"


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; for system errors, the path and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    text = str(error)
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:  # what torch makes of an error in a worker
        last = text.strip().splitlines()[-1]
        text = last.partition(": ")[2] or last
    return " ".join(text.split())


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """Return a message of the library with the flag in place of the argument's name that it starts with.

    `flags` maps the names of a command's parameters to its flags, such as ``test_size`` to ``--test-size``.
    """
    start = re.match(r"([a-z]\w*)(?:=True(?= needs ))?(?='s | '| must | needs | had |=)", message)
    if start is None:
        return message
    name = start[1]
    return flags.get(_OTHER_NAMES.get(name, name), name) + message[start.end() :]


def require(*modules: str, extra: str) -> None:
    """Raise CommandError if one of the optional modules is not installed, naming the extra that brings it."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {' and '.join(missing)}: pip install 'pymtg[{extra}]'")
