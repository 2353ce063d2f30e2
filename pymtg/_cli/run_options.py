"""The options of runs that last: checkpoints to go on from, logs, a profile, other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pymtg._cli.options import place, switch

__all__ = ["CheckpointEvery", "Log", "Profile", "RankTimeout", "Resume", "TensorBoard"]

CheckpointEvery = Annotated[
    str,
    typer.Option(
        "--checkpoint-every",
        metavar="N|TIME",
        help="When to save in DIR/checkpoints what --resume goes on from: every N epochs, or after a time such as 30s, "
        "10min or 2h, or both (5,10min). Ctrl-C and SIGTERM save too.",
    ),
]
Resume = Annotated[
    bool,
    switch(
        "--resume", help="Go on from the newest good checkpoint of a run that was stopped, or begin if there is none."
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE.jsonl",
        parser=place("--log", "file"),
        help="Write a JSON object per epoch: loss, score, seconds, time left.",
    ),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        metavar="DIR",
        parser=place("--tensorboard", "directory"),
        help="Write TensorBoard's files: every stage's scalars epoch by epoch, groups and data map at the end.",
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="DIR",
        parser=place("--profile", "directory"),
        help="Profile the run: DIR/pymtg.pt.trace.json for Perfetto, Chrome or TensorBoard, and where the time went.",
    ),
]
RankTimeout = Annotated[
    str,
    typer.Option(
        "--rank-timeout",
        metavar="TIME",
        help="Of a run that torchrun started on several ranks: how long one waits for another before it ends.",
    ),
]
