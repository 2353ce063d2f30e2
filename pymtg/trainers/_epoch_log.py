"""A log of the epochs as JSON lines."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pymtg._files import replacing
from pymtg.trainers.results import EpochRecord, json_number

__all__ = ["EpochLog"]


class EpochLog:
    """Appends an object per epoch to a file; what is there of epochs after the first `keep` is taken out before.

    A device or a pipe, such as ``/dev/stderr``, is written to as it is.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():
            kept = _whole_lines(path)[:keep] if keep and path.is_file() else []
            with replacing(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)  # a line goes out when it is whole

    def write(
        self, stage: str, record: EpochRecord, epochs: int, left: float, more: dict[str, Any] | None = None
    ) -> None:
        """Log one epoch of a stage; `left` are the seconds that the epochs still to come may take."""
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "stage": stage,
            "epoch": record.epoch,
            "epochs": epochs,
            "loss": record.loss,
            "val_score": None if record.val_score is None else json_number(record.val_score),
            "seconds": round(record.seconds, 6),
            "left": round(left, 3),
            **(more or {}),
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
