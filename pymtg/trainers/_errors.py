"""Errors that only training can meet."""

from __future__ import annotations

from pymtg.errors import PymtgError

__all__ = ["CheckpointWarning", "KeepBestWarning", "NonFiniteLossError", "NotFittedError", "UnlabelledTaskWarning"]


class NonFiniteLossError(PymtgError, ArithmeticError):
    """A loss or a weight became NaN or infinite while training; the message names stage, epoch and tasks."""


class NotFittedError(PymtgError, ValueError, AttributeError):
    """A trainer was asked for what only :meth:`fit` can give."""


class CheckpointWarning(UserWarning):
    """A checkpoint was damaged, or comes from another version of torch; the run goes on from where it can."""


class KeepBestWarning(UserWarning):
    """None of a stage's tasks could be scored on the validation set, so that its last epoch was kept."""


class UnlabelledTaskWarning(UserWarning):
    """A task has no label in the training set: whatever comes out for it was not learned."""
