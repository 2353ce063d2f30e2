"""Data maps in Lightning: a callback, and a mix-in that spares a module every change to what it returns.

Needs ``lightning`` (or ``pytorch_lightning``, where that is the one installed): the extra ``pymtg[lightning]``.
"""

from __future__ import annotations

from pymtg.integrations.lightning._callback import DataMapCallback
from pymtg.integrations.lightning._mixin import DataMapMixin

__all__ = ["DataMapCallback", "DataMapMixin"]
