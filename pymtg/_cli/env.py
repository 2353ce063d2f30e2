"""``pymtg env``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["env"]


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, backends, instruction set, threads and devices."""
    from pymtg._cli.environment import environment

    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from pymtg._cli.tables import print_pairs

    for title, part in found.items():
        print_pairs(title, part)
