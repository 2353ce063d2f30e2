"""The Hugging Face Trainer: what cannot be recorded, and mistakes."""

from __future__ import annotations

import sys

import pytest
import torch
from _huggingface_runs import SINGLE, M, Spy, Tokens, bert, train
from torch.utils.data import IterableDataset
from transformers import BertForTokenClassification, Trainer

from pymtg import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.hooks import RecordingError
from pymtg.integrations.huggingface import DataMapCallback, DataMapTrainer


def test_what_has_no_gold_label_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="problem_type is 'regression'"):
        train(tmp_path, model=bert(num_labels=1), dataset=Tokens(dtype=torch.float))
    with pytest.raises(InvalidArgumentError, match=r"logits of task 'label' must be \[B, 3\]; got \[4, 6, 3\]"):
        train(tmp_path, DataMapTrainer, bert(head=BertForTokenClassification), Tokens((6,)), [DataMapCallback(SINGLE)])


class Stream(IterableDataset):
    def __iter__(self):
        yield {}


class NoCall(DataMapTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return next(model.parameters()).sum()


class Unlabelled(DataMapTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return model(**inputs).logits.sum()


class OwnLoader(DataMapTrainer):
    def get_train_dataloader(self):
        return Trainer.get_train_dataloader(self)


class NoIds(DataMapTrainer):
    sample_ids_given = True


@pytest.mark.parametrize(
    ("trainer", "options", "error", "message"),
    [
        (Spy, {"dataset": Stream(), "max_steps": 2}, InvalidTypeError, "Stream is an IterableDataset"),
        (Unlabelled, {"dataset": [{"input_ids": [0, 1]}]}, RecordingError, r"must hold the labels \['labels'\]"),
        (NoCall, {}, RecordingError, "did not call the model"),
        (OwnLoader, {}, RecordingError, "the batch must hold 'sample_id'"),
        (NoIds, {}, InvalidTypeError, r"must yield dicts with the key 'sample_id'; got the keys"),
        (Spy, {"auto_find_batch_size": True, "given": True}, InvalidArgumentError, "auto_find_batch_size"),
    ],
)
def test_mistakes_while_training(tmp_path, trainer, options, error, message):
    options = dict(options)
    given = [DataMapCallback(data_map=DataMap(M, SINGLE))] if options.pop("given", False) else []
    with pytest.raises(error, match=message):
        train(tmp_path, trainer, callbacks=given, **options)


def test_options_are_checked_when_the_callback_is_made():
    with pytest.raises(InvalidTypeError, match="restore"):
        DataMapCallback(restore="yes")
    with pytest.raises(InvalidArgumentError, match="snapshot_epochs"):
        DataMapCallback(snapshot_epochs=-1)


def test_without_transformers_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pymtg.integrations.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'pymtg\[huggingface\]'"):
        import pymtg.integrations.huggingface  # noqa: F401
