"""Exceptions that pymtg raises for bad input, each also an instance of the built-in one that a caller would expect."""

from __future__ import annotations


class PymtgError(Exception):
    """Base class of every error that pymtg raises on purpose."""


class InvalidArgumentError(PymtgError, ValueError):
    """An argument has a value, a shape or a device that the call cannot take."""


class InvalidTypeError(PymtgError, TypeError):
    """An argument has a type or a dtype that the call cannot take."""


class SampleIdError(PymtgError, IndexError):
    """A sample id does not belong to the data map."""


class MissingLabelError(PymtgError, ValueError):
    """A label is missing and the data map was built for complete labels."""


class SnapshotsNotKeptError(PymtgError, RuntimeError):
    """Snapshots are asked for that a data map added to its Gram matrix and did not keep."""


class FileFormatError(PymtgError, ValueError):
    """A file is not what pymtg writes: truncated, of another version, or something else altogether."""


class MapMemoryError(PymtgError, MemoryError):
    """A data map of the size asked for does not fit the memory of its device."""


class BackendError(PymtgError, RuntimeError):
    """A backend was asked for by name and cannot serve these tensors or is not available here."""


class RankError(PymtgError, RuntimeError):
    """Another rank of a distributed run is lost, failed, or was given something else than this one."""
