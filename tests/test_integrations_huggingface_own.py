"""The Hugging Face Trainer: losses, collators, samples and samplers of one's own, and batches that are filled up."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util

import pytest
import torch
from _huggingface_runs import SINGLE, M, Spy, Tokens, train
from _observed import assert_same_map
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer, TrainingArguments

from pymtg.errors import InvalidArgumentError, SampleIdError
from pymtg.integrations.huggingface import DataMapCallback, DataMapTrainer, DataMapTrainerMixin
from pymtg.integrations.huggingface._loading import real_rows


def test_a_loss_function_and_a_collator_of_ones_own(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs["logits"], labels)

    def collate(features):
        assert all("sample_id" not in feature for feature in features)
        return {name: torch.stack([f[name] for f in features]) for name in ("input_ids", "labels")}

    class WithLoss(Spy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, compute_loss_func=loss, **kwargs)

    run = train(tmp_path, WithLoss, collator=collate, dataloader_num_workers=1, num_train_epochs=1)
    assert_same_map(run.data_map, run.observed.map(SINGLE, M))


def test_only_the_first_forward_of_a_step_counts(tmp_path):
    class Twice(DataMapTrainerMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert "sample_id" not in inputs
            outputs, again = model(**inputs), model(**inputs)
            loss = outputs.loss + again.loss
            return (loss, outputs) if return_outputs else loss

    assert train(tmp_path, Twice).data_map.count.eq(2).all()


def test_ids_that_the_samples_bring_along(tmp_path):
    class Given(Spy):
        sample_ids_given = True

    dataset = Tokens()
    reversed_ids = [{**dataset[i], "sample_id": M - 1 - i} for i in range(0, M, 2)]
    run = train(tmp_path, Given, dataset=reversed_ids, callbacks=[DataMapCallback(num_samples=M)])
    assert run.data_map.count[:, 0].tolist() == [0, 2] * (M // 2)
    assert_same_map(run.data_map, run.observed.map(SINGLE, M))
    with pytest.raises(InvalidArgumentError, match="must not yield the key 'sample_id'"):
        train(tmp_path, dataset=reversed_ids)
    with pytest.raises(SampleIdError):
        train(tmp_path, Given, dataset=reversed_ids)


def test_a_trainer_without_the_mix_in_calls_record(tmp_path):
    callback = DataMapCallback(SINGLE, num_samples=M)

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            ids = inputs.pop("ids")
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            callback.record(outputs.logits, inputs["labels"], ids)
            return loss

    dataset = Tokens()
    samples = [{**dataset[i], "ids": i} for i in range(M)]
    run = train(tmp_path, Own, dataset=samples, callbacks=[callback], remove_unused_columns=False)
    assert callback.data_map.count.eq(2).all()
    with torch.no_grad():  # as Trainer.evaluate calls compute_loss
        run.compute_loss(run.model, run.data_collator([samples[0]]))
    assert callback.data_map.count.eq(2).all()
    assert callback.data_map.snapshot_epochs == (1, 2)


def test_a_copy_of_the_model_made_while_training_is_not_recorded(tmp_path):
    class Averaged(DataMapTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            copy.deepcopy(model).train()(**inputs)
            return loss

    assert train(tmp_path, Averaged).data_map.count.eq(2).all()


def by_length():
    """Return the option that groups batches by length: the first releases of transformers 5 call it otherwise."""
    new = "train_sampling_strategy" in {field.name for field in dataclasses.fields(TrainingArguments)}
    return {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}


def test_samples_are_told_apart_where_batches_are_grouped_by_length(tmp_path):
    run = train(tmp_path, **by_length())
    assert run.data_map.count.eq(2).all()


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
@pytest.mark.parametrize("options", [{}, by_length()])
def test_a_hugging_face_data_set(tmp_path, options):
    import datasets

    columns = {"input_ids": torch.randint(20, (M, 6)).tolist(), "label": [i % 3 for i in range(M)]}
    dataset = datasets.Dataset.from_dict({**columns, "text": ["x"] * M, "length": [6] * M})
    run = train(tmp_path, dataset=dataset, **options)
    assert_same_map(run.data_map, run.observed.map(SINGLE, M))
    assert run.data_map.count.eq(2).all()


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans())
def test_what_accelerate_fills_up_with_is_left_out(size, ranks, batch, split, even, drop):
    seen, batch = [], batch * ranks if split else batch
    for rank in range(ranks):
        loader = prepare_data_loader(
            torch.utils.data.DataLoader(range(size), batch_size=batch, drop_last=drop),
            num_processes=ranks,
            process_index=rank,
            split_batches=split,
            even_batches=even,
            put_on_device=False,
        )
        batches = [rows.tolist() for rows in loader.base_dataloader]
        if batches:
            batches[-1] = batches[-1][: real_rows(loader, len(batches[-1]), rank)]
        seen += [row for rows in batches for row in rows]
    assert sorted(seen) == list(range(len(seen) if drop else size))
