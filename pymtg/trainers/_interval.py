"""How often to save: every so many epochs, every so many seconds, or both."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["Interval", "seconds_of"]

_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_RULE = "checkpoint_every must be a number of epochs from 1, a time such as '30s', '10min' or '2h', or both ('5,10min')"


def seconds_of(word: str) -> float | None:
    """Return the seconds of a time such as ``"30s"``, ``"10min"`` or ``"2h"``; None if it is none above 0."""
    match = _TIME.fullmatch(word.strip())
    return float(match[1]) * _SECONDS[match[2]] if match and float(match[1]) > 0 else None


@dataclass(frozen=True)
class Interval:
    """Every `epochs` of a stage, and when `seconds` have passed; None for never."""

    epochs: int | None = 1
    seconds: float | None = None

    @classmethod
    def of(cls, value: Any) -> Interval:
        """Return an interval from an integer, or from text such as ``"5"``, ``"10min"`` or ``"5,10min"``."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InvalidTypeError(f"{_RULE}; got {value!r}")
        epochs: int | None = None
        seconds: float | None = None
        for word in str(value).split(","):
            time_of = seconds_of(word)
            if time_of is not None and seconds is None:
                seconds = time_of
            elif word.strip().isascii() and word.strip().isdigit() and int(word) >= 1 and epochs is None:
                epochs = int(word)
            else:
                raise InvalidArgumentError(f"{_RULE}; got {value!r}")
        return cls(epochs, seconds)

    def due_after(self, epoch: int) -> bool:
        """Return whether to save after an epoch of a stage."""
        return self.epochs is not None and epoch % self.epochs == 0

    def due_since(self, moment: float) -> bool:
        """Return whether the time has passed since a moment of :func:`time.monotonic`."""
        return self.seconds is not None and time.monotonic() - moment >= self.seconds
