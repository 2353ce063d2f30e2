"""The Hugging Face Trainer: checkpoints, and training again."""

from __future__ import annotations

import pytest
import torch
from _huggingface_runs import SINGLE, M, Tokens, bert, train
from _observed import assert_same_map

from pymtg import DataMap
from pymtg.hooks import RecordingError
from pymtg.integrations.huggingface import FILE_NAME, DataMapCallback, DataMapTrainer


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
