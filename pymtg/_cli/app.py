"""The typer application: commands, ``--version``, and what an error looks like."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pymtg._cli.cluster import cluster
from pymtg._cli.compare import compare
from pymtg._cli.dmtg import dmtg
from pymtg._cli.env import env
from pymtg._cli.errors import CommandError, StoppedError, in_flags, one_line
from pymtg._cli.ranks import leave_ranks, rank_label
from pymtg._cli.stg import stg
from pymtg._cli.warning_lines import warning_lines

__all__ = ["app", "run"]


class _Commands(TyperGroup):
    """A group of commands that lets Ctrl-C through under a name of our own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer would print an empty line and end with 1
            raise StoppedError(stop) from None


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command(short_help="Train, group the tasks, train a network per group, report.")(stg)
app.command(short_help="Learn groups and networks in one run, report.")(dmtg)
app.command(short_help="Compare STG and DMTG with their baselines over seeds.")(compare)
app.command(short_help="Group tasks by a saved data map or Gram matrix.")(cluster)
app.command(short_help="Show versions, backends, processor and devices.")(env)


_COMMANDS = frozenset(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@app.callback(invoke_without_command=True)
def pymtg(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print pymtg's version and exit.")] = False,
) -> None:
    """Multi-task grouping: train on many tasks, see how each is learned, group those that are learned alike."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"pymtg {version_of('pymtg')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    After an error that the user can mend, print one line and return 2; after Ctrl-C return 130, after SIGTERM 143;
    where another rank is lost, 1.
    """
    from pymtg.errors import PymtgError, RankError

    name = " ".join(["pymtg", *[word for word in arguments[:1] if word in _COMMANDS]])
    try:
        with warning_lines(lambda: _flags(name)):
            code = typer.main.get_command(app).main(list(arguments), prog_name="pymtg", standalone_mode=False)
        leave_ranks()  # not after an error: the others hear of it as this process ends
    except StoppedError as stopped:
        return _fail(name, stopped.message, stopped.code)
    except BrokenPipeError:  # the reader of our output (head, less) has gone: nobody is left to tell
        sys.stderr.close()
        return 1
    except RankError as error:
        return _fail(name, one_line(error), 1)
    except PymtgError as error:
        return _fail(name, in_flags(one_line(error), _flags(name)), 2)
    except (CommandError, OSError) as error:
        return _fail(name, one_line(error), 2)
    except Exception as error:
        # Usage errors are typer's own or, in its older versions, click's: known by their method, not their class.
        if not hasattr(error, "format_message"):
            raise
        return _fail(name, " ".join(error.format_message().split()) + f" (see '{name} --help')", 2)
    return code if isinstance(code, int) else 0


def _flags(name: str) -> dict[str, str]:
    """Return the long flag of each of a command's parameters, by the parameter's name."""
    command: Any = typer.main.get_command(app)
    command = command.commands.get(name.partition(" ")[2], command)
    return {p.name: word for p in command.params for word in p.opts if word.startswith("--")}


def _fail(name: str, message: str, code: int) -> int:
    print(f"{name}{rank_label()}: {message}", file=sys.stderr)
    return code
