"""The Hugging Face Trainer: ids on their way, what is recorded, checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys

import pytest
import torch
from _observed import Observed, assert_same_map
from _settings import new_seed
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from pymtg import DataMap, TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, SampleIdError
from pymtg.hooks import RecordingError
from pymtg.integrations.huggingface import FILE_NAME, DataMapCallback, DataMapTrainer, DataMapTrainerMixin
from pymtg.integrations.huggingface._loading import real_rows

M = 22
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SINGLE = TaskLayout(["label"], [3])


def bert(seed=0, head=BertForSequenceClassification, **options):
    torch.manual_seed(seed)
    options = {"num_labels": 3, **options}
    return head(BertConfig(vocab_size=20, max_position_embeddings=8, **TINY, **options))


class Tokens(Dataset):
    """Samples that are dicts, with a column that no model takes."""

    def __init__(self, label_shape=(), classes=3, dtype=torch.long, size=M, **more):
        seed = new_seed()
        print(f"PYMTG_TEST_SEED={seed}")
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randint(20, (size, 6), generator=generator)
        self.labels = torch.randint(classes, (size, *label_shape), generator=generator).to(dtype)
        self.more = more

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"input_ids": self.inputs[index], "labels": self.labels[index], **self.more}


class Spy(DataMapTrainer):
    """Notes what the model returned in training, batch by batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.observed = Observed()
        self.read = lambda outputs: outputs["logits"]
        self.model.register_forward_hook(self._returned)

    def training_step(self, model, inputs, *args, **kwargs):
        labels = [inputs[name] for name in self.label_names]
        self.noted = labels[0] if len(labels) == 1 else torch.stack(labels, 1), inputs["sample_id"]
        return super().training_step(model, inputs, *args, **kwargs)

    def _returned(self, module, args, outputs):
        if module.training:
            targets, ids = self.noted
            self.observed.note(self.read(outputs), targets, ids)


def arguments(folder, **options):
    options = {"num_train_epochs": 2, "save_strategy": "no", "logging_strategy": "no", **options}
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )


def train(folder, trainer=Spy, model=None, dataset=None, callbacks=(), resume=None, collator=None, **options):
    run = trainer(
        model=bert() if model is None else model,
        args=arguments(folder, **options),
        train_dataset=Tokens() if dataset is None else dataset,
        eval_dataset=Tokens(size=5) if options.get("eval_strategy") else None,
        data_collator=collator,
        callbacks=list(callbacks),
    )
    run.pop_callback(PrinterCallback)
    run.train(resume_from_checkpoint=resume)
    return run


@pytest.mark.parametrize("remove", [True, False])
def test_every_training_batch_is_recorded_once(tmp_path, remove):
    dataset = Tokens(**({"text": "not for the model"} if remove else {}))
    options = {"eval_strategy": "epoch", "gradient_accumulation_steps": 4, "bf16": remove}
    run = train(tmp_path, dataset=dataset, remove_unused_columns=remove, **options)
    assert_same_map(run.data_map, run.observed.map(SINGLE, M))
    assert run.data_map.count.eq(2).all()
    assert run.data_map.snapshot_epochs == (1, 2)
    assert run.data_map_callback.num_batches == 12
    assert run.train_dataset is dataset
    before = run.data_map.state.words.clone()
    predicted = run.predict(with_ids(Tokens(size=3)))  # ids in a set to predict do not reach the model either
    assert predicted.predictions.shape == (3, 3)
    assert torch.equal(run.data_map.state.words, before)


def test_training_is_what_it_is_without_the_map(tmp_path):
    dataset = Tokens()
    options = {"dataset": dataset, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}
    plain = train(tmp_path, Trainer, bert(), **options)
    recorded = train(tmp_path, DataMapTrainer, bert(), **options)
    for mine, theirs in zip(recorded.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorded.data_map.count.eq(2).all()
    assert not recorded.model._forward_hooks


# Heads


def test_a_multi_label_head_has_a_task_per_label(tmp_path):
    model = bert(problem_type="multi_label_classification", id2label={0: "kind", 1: "useful", 2: "short"})
    run = train(tmp_path, model=model, dataset=Tokens((3,), 2, torch.float))
    assert run.data_map.layout == TaskLayout.binary(["kind", "useful", "short"])
    assert_same_map(run.data_map, run.observed.map(run.data_map.layout, M))


def test_a_head_that_does_not_say_its_problem_is_read_as_transformers_reads_it(tmp_path):
    run = train(tmp_path, model=bert(), dataset=Tokens((3,), 2, torch.float), num_train_epochs=1)
    assert run.data_map.layout == TaskLayout.binary(["LABEL_0", "LABEL_1", "LABEL_2"])


def test_an_image_classifier(tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **TINY))
    dataset = [{"pixel_values": torch.randn(1, 4, 4), "label": i % 3, "name": "x"} for i in range(M)]
    run = train(tmp_path, model=model, dataset=Subset(dataset, range(1, M)), num_train_epochs=1)
    assert run.data_map.num_samples == M - 1
    assert_same_map(run.data_map, run.observed.map(SINGLE, M - 1))


class TwoHeads(nn.Module):
    """A module of one's own: two label names, logits by task, no configuration."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.EmbeddingBag(20, 4)
        self.heads = nn.ModuleDict({"topic": nn.Linear(4, 3), "spam": nn.Linear(4, 1)})
        self.form = form

    def forward(self, input_ids, topic, spam):
        features = self.embedding(input_ids)
        logits = {"spam": self.heads["spam"](features)[:, 0], "topic": self.heads["topic"](features)}
        loss = nn.functional.cross_entropy(logits["topic"], topic)
        loss = loss + nn.functional.binary_cross_entropy_with_logits(logits["spam"], spam.float())
        if self.form == "tuple":
            return loss, (logits["topic"], logits["spam"])
        return {"loss": loss, **logits} if self.form == "flat" else {"loss": loss, "logits": logits}


@pytest.mark.parametrize("form", ["nested", "flat", "tuple"])
def test_several_heads_with_labels_of_their_own(tmp_path, form):
    dataset = [{"input_ids": torch.randint(20, (6,)), "topic": i % 3, "spam": i % 2, "x": 0} for i in range(M)]
    layout = TaskLayout(["topic", "spam"], [3, 1])

    class Reading(Spy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.read = self.side_by_side

        def side_by_side(self, outputs):
            parts = outputs[1] if form == "tuple" else [outputs.get("logits", outputs)[name] for name in layout.names]
            return torch.cat([part.reshape(len(part), -1) for part in parts], 1)

    run = train(
        tmp_path,
        Reading,
        TwoHeads(form),
        dataset,
        [DataMapCallback(layout, snapshot_epochs=None)],
        label_names=["topic", "spam"],
    )
    assert_same_map(run.data_map, run.observed.map(layout, M))
    assert run.data_map.snapshot_epochs == ()
    if form != "tuple":  # by name on both sides: the order of label_names is no matter
        other_way = train(
            tmp_path, DataMapTrainer, TwoHeads(form), dataset, [DataMapCallback(layout)], label_names=["spam", "topic"]
        )
        assert_same_map(other_way.data_map, run.observed.map(layout, M))
    with pytest.raises(InvalidArgumentError, match="layout must be given"):
        train(tmp_path, Reading, TwoHeads(form), dataset, label_names=["topic", "spam"])
    wide = [{**sample, "spam": [0, 1]} for sample in dataset]
    with pytest.raises(InvalidArgumentError, match=r"labels 'spam' must be \[B\], one of several tasks; got \[4, 2\]"):
        train(tmp_path, DataMapTrainer, TwoHeads(form), wide, [DataMapCallback(layout)], label_names=["topic", "spam"])


def test_missing_labels(tmp_path):
    dataset = Tokens((3,), 2, torch.float)
    dataset.labels[::4, 1] = torch.nan

    class Own(Spy):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"])
            loss = outputs.logits.square().mean()
            return (loss, outputs) if return_outputs else loss

    model = bert(problem_type="multi_label_classification")
    run = train(tmp_path, Own, model, dataset, [DataMapCallback(missing=True, snapshots="gram")])
    assert_same_map(run.data_map, run.observed.map(run.data_map.layout, M, missing=True))
    assert run.data_map.count[0].tolist() == [2, 0, 2]
    assert run.data_map.snapshot_kind == "gram"


# Losses, collators and samples of one's own


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


# Checkpoints


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({"save_strategy": "epoch"}, 6),
        ({"save_strategy": "steps", "save_steps": 3}, 6),  # at the last step of an epoch, before its end
        ({"save_strategy": "steps", "save_steps": 2}, 4),  # within an epoch
    ],
)
def test_a_resumed_training_goes_on_with_its_map(tmp_path, options, stop):
    dataset = Tokens()

    def run(folder, resume=None):
        callback = DataMapCallback(snapshot_epochs=1)
        return train(folder, DataMapTrainer, bert(), dataset, [callback], resume, num_train_epochs=3, **options)

    whole = run(tmp_path)
    resumed = run(tmp_path, str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.data_map_callback.num_batches == 18 - stop
    assert_same_map(resumed.data_map, whole.data_map)
    assert whole.data_map.snapshot_epochs == (1, 2, 3)
    stored = DataMap.load(tmp_path / "checkpoint-18" / FILE_NAME)
    assert torch.equal(stored.state.words, whole.data_map.state.words)


def test_the_last_checkpoint_is_found_and_a_missing_map_is_an_error(tmp_path):
    train(tmp_path, save_strategy="epoch")
    resumed = train(tmp_path, DataMapTrainer, num_train_epochs=3, resume=True)
    assert resumed.data_map.count.eq(3).all()
    (tmp_path / "checkpoint-12" / FILE_NAME).unlink()
    with pytest.raises(RecordingError, match=r"no data map at .*restore=False"):
        train(tmp_path, DataMapTrainer, num_train_epochs=3, resume=True)
    fresh = train(tmp_path, callbacks=[DataMapCallback(restore=False)], num_train_epochs=3, resume=True)
    assert fresh.data_map.count.eq(1).all()
    assert fresh.data_map.snapshot_epochs == (3,)


def test_an_epoch_cut_short_and_gone_on_with_keeps_its_snapshot(tmp_path):
    first = train(tmp_path, max_steps=8, save_strategy="steps", save_steps=8)
    assert first.data_map.snapshot_epochs == (1, 2)
    resumed = train(tmp_path, DataMapTrainer, num_train_epochs=3, resume=True)
    assert resumed.data_map.snapshot_epochs == (1, 2, 3)
    assert resumed.data_map.count.sum() == 3 * M


@pytest.mark.parametrize(
    ("asked", "named", "options"),
    [
        ([1, 9, 5], "5, 9", {}),
        (3, "3", {"num_train_epochs": 1.5}),
        ([3], "3", {"max_steps": 8}),
        ([1, 2], None, {}),
        (None, None, {}),
    ],
)
def test_snapshots_beyond_the_last_epoch_are_warned_of(tmp_path, recwarn, asked, named, options):
    train(tmp_path, DataMapTrainer, callbacks=[DataMapCallback(SINGLE, snapshot_epochs=asked)], **options)
    found = [str(w.message) for w in recwarn if "snapshot_epochs" in str(w.message)]
    assert len(found) == (named is not None)
    assert not found or f"must not go beyond the training's number of epochs (2); got {named}:" in found[0]


@pytest.mark.parametrize("sizes", [(6, 11), (11, 6)])
def test_training_again_on_another_set_takes_its_size(tmp_path, sizes):
    run = train(tmp_path)
    whole = run.train_dataset
    for size in sizes:
        run.train_dataset = [whole[i] for i in range(size)]
        run.train()
        assert run.data_map.count.flatten().tolist() == [2] * size


def test_training_again_begins_an_empty_map(tmp_path):
    run = train(tmp_path)
    run.train()
    assert run.data_map.count.eq(2).all()
    given = DataMap(M, SINGLE)
    given.update(torch.tensor([[0.5]]), torch.tensor([3]))
    on = train(tmp_path, callbacks=[DataMapCallback(data_map=given)])
    assert on.data_map is given
    assert given.count.sum() == 2 * M + 1


# Copies that fill up the last batch


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


# Mistakes


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
