"""The error of a recorder that is used out of turn."""

from __future__ import annotations

from pymtg.errors import PymtgError

__all__ = ["RecordingError"]


class RecordingError(PymtgError, RuntimeError):
    """A recorder and the loop are out of step: no sample ids for a batch, attached twice, nothing recorded."""
