"""The options for images, their networks, and configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pymtg._cli.config_file import config_option

__all__ = ["NETWORKS", "Attributes", "Config", "ImageSize", "Images", "Network", "Workers"]

NETWORKS = ("auto", "mlp", "cnn", "celeba", "resnet18")

Network = Annotated[
    str,
    typer.Option(
        "--network",
        metavar="|".join(NETWORKS),
        help="An MLP, STG-MTL's small CNN, DMTG's network for CelebA, or ResNet-18. By default an MLP for rows of "
        "numbers and the paper's own network for images.",
    ),
]
Attributes = Annotated[
    str | None,
    typer.Option(
        "--attributes", metavar="9|all|A,B,...", show_default="9", help="CelebA's tasks: DMTG's 9, all 40, or by name."
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", min=1, metavar="N", show_default="64", help="Height and width of CelebA's images."),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="auto|memory|disk",
        show_default="auto",
        help="Whether CelebA's images are read once and kept, or whenever needed; by default kept up to 1 GiB.",
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that read data which are not kept in memory; 0: none.")
]
Config = Annotated[Path | None, config_option()]
