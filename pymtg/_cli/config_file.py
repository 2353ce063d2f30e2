"""``--config FILE``: a TOML file with a command's options, which flags on the command line override."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer

from pymtg._cli.errors import CommandError, one_line

__all__ = ["config_option"]

_COMMAND = "command"


def config_option() -> Any:
    """Return the option, which is read before all others and sets their defaults."""
    return typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=_read,
        help="Options as a TOML file has them, by their long names: epochs = 100. Flags override the file; "
        "--no-... those that it sets to true.",
    )


def _read(context: typer.Context, file: Path | None) -> Path | None:
    if file is None:
        return None
    content = _loaded(file)
    command = context.command.name
    meant = content.pop(_COMMAND, command)
    if meant != command:
        raise CommandError(f"--config must be a file for pymtg {command}; {file} is for {meant!r}")
    known = {word[2:]: option for option in context.command.params for word in option.opts if word.startswith("--")}
    for name in ("config", "help"):
        known.pop(name, None)
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        option = known.get(key.replace("_", "-"))
        if option is None or option.name is None:
            raise CommandError(f"--config must hold options of pymtg {command}; {file} has {key!r}, which is none")
        if option.name in defaults:
            raise CommandError(f"--config must hold every option once; {file} has {key!r} twice")
        defaults[option.name] = _value(file, key, value, is_flag=bool(getattr(option, "is_flag", False)))
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


def _value(file: Path, key: str, value: Any, *, is_flag: bool) -> Any:
    """Return a value as the command line would give it: true or false for a flag, else words."""
    if is_flag != isinstance(value, bool):
        rule = "true or false" if is_flag else "a number, a text or a list of these"
        raise CommandError(f"--config: {key} must be {rule}; {file} has {value!r}")
    if is_flag:
        return value
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, (str, int, float)) for v in values):
        raise CommandError(f"--config: {key} must be a number, a text or a list of these; {file} has {value!r}")
    return ",".join(map(str, values))


def _loaded(file: Path) -> dict[str, Any]:
    toml = _toml()
    try:
        found: dict[str, Any] = toml.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CommandError(f"--config must be a file that can be read; {one_line(error)}") from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"--config must be a TOML file; {file}: {one_line(error)}") from None
    return found


def _toml() -> Any:
    """Return the standard library's reader, or before Python 3.11 the package that it was made from."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise CommandError("--config needs tomli before Python 3.11: pip install 'pymtg[cli]'")
