"""Data maps in the Hugging Face Trainer: a mix-in that carries sample ids, and a callback that keeps the map.

Needs ``transformers`` and ``accelerate``: the extra ``pymtg[huggingface]``.
"""

from __future__ import annotations

from pymtg.integrations.huggingface._callback import FILE_NAME, DataMapCallback
from pymtg.integrations.huggingface._mixin import DataMapTrainer, DataMapTrainerMixin

__all__ = ["FILE_NAME", "DataMapCallback", "DataMapTrainer", "DataMapTrainerMixin"]
