"""The mix-in for Trainers: ids into the training set, through columns and collator, out before the model."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from pymtg.data import IndexedDataset, with_ids
from pymtg.datamap import DataMap
from pymtg.hooks import RecordingError
from pymtg.integrations.huggingface._callback import DataMapCallback
from pymtg.integrations.huggingface._heads import layout_of_model, logits_of, targets_of
from pymtg.integrations.huggingface._loading import IdCollator, real_rows

_Base: Any = Trainer if TYPE_CHECKING else object

__all__ = ["DataMapTrainer", "DataMapTrainerMixin"]

ID_COLUMN = "sample_id"


@dataclass
class _Step:
    """The training step under way: what is known of its batch before the model is called."""

    ids: Any
    targets: Tensor | None
    rows: int | None
    recorded: bool = False


class DataMapTrainerMixin(_Base):  # type: ignore[misc, unused-ignore]
    """Records a data map in a ``transformers.Trainer``: ``class MyTrainer(DataMapTrainerMixin, Trainer)``.

    The mix-in numbers the training samples, keeps the number (``sample_id``) through the removal of columns and
    through any collator, and takes it out of the batch before the model is called. The logits of every training step's
    first call of the model, whichever ``compute_loss`` makes it, go to the :class:`DataMapCallback` among
    ``callbacks``; without one, the mix-in adds one with its defaults. Evaluation and prediction are not recorded;
    every micro-batch of an accumulated gradient is, once. With several processes the copies that fill up the last
    batch are left out.

    A training set whose samples have a ``sample_id`` of their own sets the class attribute ``sample_ids_given =
    True``: they are positions 0..M-1 in the map then.

    Raises
    ------
    RecordingError
        While training: for batches without labels (see ``TrainingArguments.label_names``), for model outputs whose row
        count is not that of the ids, and with tensor, context or sequence parallelism, where ranks share samples.
    InvalidTypeError
        For a training set that is a stream.
    """

    sample_ids_given = False
    train_dataset: Any
    data_collator: Any
    _step: _Step | None = None
    _last_batch: tuple[Any, int] | None = None
    _listener: tuple[nn.Module, RemovableHandle] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not any(isinstance(one, DataMapCallback) for one in self.callback_handler.callbacks):
            self.add_callback(DataMapCallback())

    @property
    def data_map_callback(self) -> DataMapCallback:
        """The callback that owns the map."""
        for one in self.callback_handler.callbacks:
            if isinstance(one, DataMapCallback):
                return one
        raise RecordingError("the trainer has no DataMapCallback any more: it was removed")

    @property
    def data_map(self) -> DataMap | None:
        """The callback's map; None before the first batch."""
        return self.data_map_callback.data_map

    # Ids on their way

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; the callback learns which checkpoint is resumed from."""
        callback = self.data_map_callback
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        callback._resume_from = folder or None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            callback._resume_from = self._step = self._last_batch = None
            self._stop_listening()

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's loader, with ``sample_id`` in its batches."""
        self._check_parallelism()
        dataset, collator = self.train_dataset, self.data_collator
        if dataset is not None and not self.sample_ids_given:
            self.train_dataset = with_ids(self._without_unused(dataset))
        self.data_collator = IdCollator(collator, ID_COLUMN, fresh=not self.sample_ids_given)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the next micro-batches as the Trainer does; notes which rows of an epoch's last are copies."""
        batches, count = super().get_batch_samples(epoch_iterator, *args, **kwargs)
        state = self.accelerator.gradient_state
        self._last_batch = None
        if batches and state.end_of_dataloader and ID_COLUMN in batches[-1]:
            rows = real_rows(state.active_dataloader, len(batches[-1][ID_COLUMN]), self.accelerator.process_index)
            self._last_batch = (batches[-1], rows)
        return batches, count

    # A training step

    def training_step(self, model: nn.Module, inputs: MutableMapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step on the batch without its ids, and record its first forward."""
        last, rows = self._last_batch or (None, None)
        ids = inputs.pop(ID_COLUMN, None)
        if ids is None:
            raise RecordingError(
                f"the batch must hold {ID_COLUMN!r}; it holds {list(inputs)}. A get_train_dataloader of your own has "
                "to call that of DataMapTrainerMixin"
            )
        self._listen(model)
        targets = targets_of(inputs, self.label_names, self._task_names())
        step = self._step = _Step(ids, targets, rows if last is inputs else None)
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._step = None
        if not step.recorded:
            raise RecordingError("nothing was recorded: compute_loss did not call the model that it was given")
        return loss

    def prediction_step(self, model: nn.Module, inputs: MutableMapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step on a batch without ids."""
        inputs.pop(ID_COLUMN, None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _listen(self, model: nn.Module) -> None:
        if self._listener is None or self._listener[0] is not model:
            self._stop_listening()
            self._listener = (model, model.register_forward_hook(_Listener(self, model)))

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener[1].remove()
            self._listener = None

    def _see(self, outputs: Any) -> None:
        """Record what the model returned, the first time in a step."""
        step, callback = self._step, self.data_map_callback
        if step is None or step.recorded:
            return
        if step.targets is None:
            raise RecordingError(
                f"the batch must hold the labels {list(self.label_names)} as tensors: see TrainingArguments.label_names"
            )
        recording = callback._recording
        if recording.data_map is None and recording.layout is None:
            recording.layout = layout_of_model(getattr(self.model, "config", None), step.targets)
        recording.record(logits_of(outputs, self._task_names()), step.targets, step.ids, step.rows)
        step.recorded = True

    def _task_names(self) -> tuple[str, ...]:
        """Return the names of the tasks; none before the layout is known."""
        recording = self.data_map_callback._recording
        known = recording.layout if recording.data_map is None else recording.data_map.layout
        return () if known is None else known.names

    # Parts of the Trainer that the ids have to pass

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ID_COLUMN not in self._signature_columns:
            self._signature_columns.append(ID_COLUMN)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # samplers by length look into the set itself
        inner = train_dataset.dataset if isinstance(train_dataset, IndexedDataset) else train_dataset
        return super()._get_train_sampler(inner)

    def _without_unused(self, dataset: Any) -> Any:
        """Return a Hugging Face dataset without the columns that it would lose unwrapped; any other as it is."""
        datasets = sys.modules.get("datasets")
        if datasets is not None and isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description="training")
        return dataset

    def _check_parallelism(self) -> None:
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise RecordingError(
                "a data map is recorded with data-parallel processes only; with tensor, context or sequence "
                "parallelism several of them see the same samples"
            )


class _Listener:
    """The hook on the model. Copies and pickles of it, and so of the model, do nothing."""

    def __init__(self, trainer: DataMapTrainerMixin | None = None, model: nn.Module | None = None) -> None:
        self.trainer, self.model = trainer, model

    def __call__(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if self.trainer is not None and module is self.model and module.training:
            self.trainer._see(outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Listener, ())


class DataMapTrainer(DataMapTrainerMixin, Trainer):  # type: ignore[misc, unused-ignore]
    """A ``transformers.Trainer`` that records a data map; see :class:`DataMapTrainerMixin`."""
