"""Temperature schedules of a relaxed assignment."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["SCHEDULES", "Temperature"]

SCHEDULES = ("constant", "linear", "exponential", "cosine")
LOWEST, HIGHEST = 1e-30, 1e30  # a float32 holds these and their inverses


@dataclass(frozen=True)
class Temperature:
    """A temperature that moves from `start` to `end` as training goes on.

    Parameters
    ----------
    start, end
        From 1e-30 to 1e30; `end` is `start` if not given.
    schedule
        ``"constant"``; ``"linear"``; ``"exponential"`` (linear in the logarithm); ``"cosine"`` (half a period of a
        cosine). By default ``"constant"`` without an `end`, else ``"exponential"``.

    Raises
    ------
    InvalidArgumentError
        For a temperature out of range, an unknown schedule, or a constant one with an end of its own.
    InvalidTypeError
        For a temperature that is no number.

    Notes
    -----
    DMTG's released code keeps it constant (2.5 for CelebA-9, 4 for Taskonomy-5); the schedules are ours.

    Examples
    --------
    >>> Temperature(2.5, 0.1, "linear").at(0.5)
    1.3
    """

    start: float
    end: float | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        _check("start", self.start)
        if self.end is not None:
            _check("end", self.end)
        if self.schedule is None:
            object.__setattr__(self, "schedule", "constant" if self.end is None else "exponential")
        if self.schedule not in SCHEDULES:
            raise InvalidArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        if self.end is None:
            object.__setattr__(self, "end", self.start)
        elif self.schedule == "constant" and self.end != self.start:
            raise InvalidArgumentError(
                f"schedule 'constant' must not have an end of its own; got start {self.start}, end {self.end}"
            )

    @classmethod
    def of(cls, value: Any) -> Temperature:
        """Return a schedule as it is, a number as a constant one."""
        return value if isinstance(value, cls) else cls(value)

    def at(self, progress: float) -> float:
        """Return the temperature at a share of the training between 0 and 1; beyond them that of the nearer end."""
        assert self.end is not None
        x = min(max(progress, 0.0), 1.0)
        if self.schedule == "exponential":
            found = math.exp(_between(math.log(self.start), math.log(self.end), x))
        else:
            found = _between(self.start, self.end, (1 - math.cos(math.pi * x)) / 2 if self.schedule == "cosine" else x)
        return float(min(max(found, min(self.start, self.end)), max(self.start, self.end)))  # rounding may leave them

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.start:g}"
        return f"{self.start:g} to {self.end:g} ({self.schedule})"


def _between(a: float, b: float, x: float) -> float:
    return a * (1 - x) + b * x


def check_temperature(argument: str, value: Any) -> None:
    """Raise a typed error unless `value` is a number that a softmax in float32 can be divided by."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{argument} must be a number; got {value!r}")
    if value < LOWEST or not value <= HIGHEST:
        raise InvalidArgumentError(f"{argument} must lie in {LOWEST:g}..{HIGHEST:g}; got {value}")


def _check(what: str, value: Any) -> None:
    check_temperature(f"temperature's {what}", value)
