"""What ends a command early, and how it is put in one line."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["CommandError", "StoppedError", "one_line", "require"]


class CommandError(Exception):
    """The call cannot be served; the message is for the user, whole in itself."""


class StoppedError(Exception):
    """Ctrl-C, under a name that typer does not handle by itself."""


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; for system errors, the path and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def require(*modules: str, extra: str) -> None:
    """Raise CommandError if one of the optional modules is not installed, naming the extra that brings it."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {' and '.join(missing)}: pip install 'pymtg[{extra}]'")
