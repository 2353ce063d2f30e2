"""What is said where an optional package is missing."""

from __future__ import annotations

__all__ = ["needs"]


def needs(module: str, package: str, extra: str) -> ImportError:
    """Return the error of a module of ours that cannot be imported without `package`, of the extra `extra`."""
    return ImportError(f"pymtg.integrations.{module} needs {package}: pip install 'pymtg[{extra}]'")
