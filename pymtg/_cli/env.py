"""``pymtg env``."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

__all__ = ["env"]


def env(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Hold every backend, on every device that it serves, to plain torch in float64, and time it. "
            "Ends with 1 if one is off.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, backends, instruction set, threads and devices; check the backends."""
    from pymtg._cli.environment import environment

    found = environment()
    if check:
        from pymtg._cli.backend_check import check_backends

        checked = check_backends()
        found["check"] = [dataclasses.asdict(one) for one in checked]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        from pymtg._cli.tables import print_backends, print_pairs

        for title in ("versions", "machine", "backends"):
            print_pairs(title, found[title])
        if check:
            print_backends(checked)
    if check and any(one.error is not None for one in checked):
        raise typer.Exit(1)
