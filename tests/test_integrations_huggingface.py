"""The Hugging Face Trainer: what is recorded, of heads of every kind."""

from __future__ import annotations

import pytest
import torch
from _huggingface_runs import SINGLE, TINY, M, Spy, Tokens, bert, train
from _observed import assert_same_map
from torch import nn
from torch.utils.data import Subset
from transformers import Trainer, ViTConfig, ViTForImageClassification

from pymtg import TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError
from pymtg.integrations.huggingface import DataMapCallback, DataMapTrainer


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
