"""A mix-in for LightningModules: ids are taken out of the batches, logits and targets are named in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pymtg.hooks import RecordingError
from pymtg.hooks._loader import split_batch
from pymtg.integrations.lightning._loaders import gives_ids

__all__ = ["DataMapMixin"]


class DataMapMixin:
    """Spares a module to return its logits: ``class Net(DataMapMixin, LightningModule)``.

    The training set is wrapped in :func:`pymtg.data.with_ids`. The mix-in takes the ids out of every training batch,
    once it is on its device, so that ``training_step`` gets the batch as it always was, and ``training_step`` says
    ``self.record(logits, targets)``. What it recorded goes into the map when the batch is done and no earlier: a step
    that raises leaves no trace, one that is run several times by its optimizer counts once. A step may record several
    parts of its batch, each with `sample_ids` of its own. In validation, and without a :class:`DataMapCallback` in the
    trainer, :meth:`record` keeps nothing.

    The mix-in is the module's ``on_after_batch_transfer``. Of a data module that has such a hook too, Lightning calls
    that one alone, with a warning; the callback then raises :class:`pymtg.hooks.RecordingError` as training begins.
    Have it in the module, where it calls ``super()``.
    """

    _pymtg_ids: Any = None
    _pymtg_parts: tuple[tuple[Tensor, Tensor, Any], ...] | None = None  # None where no callback reads them

    def record(self, logits: Tensor, targets: Tensor, sample_ids: Any = None) -> None:
        """Say what this training step saw.

        Parameters
        ----------
        logits
            ``[B, num_logits]``; copied, so that what the step does to them later is its own.
        targets
            ``[B, T]`` class numbers (``[B]`` for one task); 0/1 labels may be floating-point.
        sample_ids
            ``[B]`` positions in the data map; by default those that :func:`pymtg.data.with_ids` put into the batch. A
            second call with the same ids in a step takes the place of the first.

        Raises
        ------
        RecordingError
            Without `sample_ids`, where the batch had none.
        """
        if not _in_training(self):
            return
        ids = self._pymtg_ids if sample_ids is None else sample_ids
        if ids is None:
            raise RecordingError(
                "there are no sample ids for this batch: wrap the training set in pymtg.data.with_ids(dataset), or "
                "call record(logits, targets, sample_ids). Where it is wrapped, DataMapMixin must stand before "
                "LightningModule among the bases, and an on_after_batch_transfer of your own must call super()"
            )
        if self._pymtg_parts is None:
            return
        part = (logits.detach().clone(), targets.detach().clone(), ids)
        self._pymtg_parts = (*(kept for kept in self._pymtg_parts if not _same_ids(kept[2], ids)), part)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the ids out of a training batch: Lightning's hook."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)  # type: ignore[misc]
        self._pymtg_ids = None
        if not _in_training(self):
            return batch
        if gives_ids(self._trainer.train_dataloader):  # type: ignore[attr-defined]
            self._pymtg_ids, batch = split_batch(batch)
        elif isinstance(batch, Mapping):
            self._pymtg_ids = batch.get("sample_id")
        return batch


def _same_ids(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.to(other.device), other)
    return list(one) == list(other)


def _in_training(module: Any) -> bool:
    trainer = module._trainer  # the property raises where there is none
    return trainer is not None and trainer.training and not trainer.sanity_checking
