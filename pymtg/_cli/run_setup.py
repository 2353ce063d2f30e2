"""What a training command checks before it spends hours: data, directory, device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pymtg._cli.errors import CommandError, one_line

if TYPE_CHECKING:
    from pymtg.data import TaskData

__all__ = ["check_place", "load_data"]


def check_place(out: Path, device: str | None) -> None:
    """Try the directory and the device out."""
    from pymtg.report import check_writable

    try:
        check_writable(out)
    except OSError as error:
        raise CommandError(f"--out must be a directory that can be written; {one_line(error)}") from None
    if device is not None:
        _try_device(device)


def _try_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).add_(1).item()
    # torch says "no such device" with all of these, depending on the device and on how torch was built
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(
            f"--device must name a device that works here; got {device!r}: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_data(spec: str, seed: int, test_size: float, val_size: float, targets: int | None = None) -> TaskData:
    """Load a data set; a reader's missing package becomes an error of the command."""
    from pymtg.data import load

    try:
        return load(spec, seed, test_size=test_size, val_size=val_size, targets=targets)
    except ImportError as error:
        raise CommandError(one_line(error)) from None
