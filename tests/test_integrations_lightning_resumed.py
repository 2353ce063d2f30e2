"""Lightning: fits that go on with their maps, fits from the start, and the snapshots of both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from _lightning_runs import LAYOUT, THEIR_OWN_AFFAIRS, M, Net, T, both, data, fit, trainer
from _observed import assert_same_map
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset

from pymtg import DataMap, TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError
from pymtg.integrations.lightning import DataMapCallback

pytestmark = THEIR_OWN_AFFAIRS


@pytest.mark.parametrize("saved", ["train end", "validation end"])
def test_a_resumed_fit_goes_on_with_its_maps(tmp_path, saved):
    dataset = with_ids(data())
    monitor = {} if saved == "train end" else {"monitor": "val_loss", "save_on_train_epoch_end": False}

    def run(callbacks, max_epochs, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, **monitor)
        options = {"enable_checkpointing": True, "callbacks": [keep], "shuffle": False}
        fit(Net(), callbacks, dataset, max_epochs, ckpt_path, **options)
        return callbacks

    whole = run(both(), 4)
    resumed = run(both(), 4, tmp_path / "epoch=1.ckpt")
    for mine, theirs in zip(resumed, whole, strict=True):
        assert_same_map(mine.data_map, theirs.data_map)
    assert whole[0].data_map.snapshot_epochs == (1, 2, 3, 4)
    assert whole[1].data_map.snapshot_epochs == (2, 3)
    # the last epoch's snapshot too, where there is nothing left to train
    with pytest.warns(UserWarning, match=r"max_epochs \(2\); got 3"):
        ended = run(both(), 2, tmp_path / "epoch=1.ckpt")
    assert ended[0].data_map.snapshot_epochs == (1, 2)


class Remembering(DataLoader):
    """A loader that Lightning can resume in the middle of an epoch."""

    position = 0

    def __iter__(self):
        start = self.position % len(self)
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.position = number + 1
                yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def test_a_fit_resumed_within_an_epoch_goes_on_with_its_map(tmp_path):
    dataset = with_ids(data())

    def run(ckpt_path=None):
        callback = DataMapCallback()
        keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
        run = trainer(callback, keep, enable_checkpointing=True, limit_val_batches=0)
        run.fit(Net(), Remembering(dataset, batch_size=4), ckpt_path=ckpt_path)
        return callback

    whole = run()
    resumed = run(tmp_path / "step=8.ckpt")  # of 12
    assert resumed.num_batches == 4
    assert_same_map(resumed.data_map, whole.data_map)


def test_a_fit_from_the_start_begins_an_empty_map_and_one_that_goes_on_keeps_it():
    dataset, callback = with_ids(data()), DataMapCallback()
    first = fit(Net(), callback, dataset, max_epochs=1)
    fit(Net(), callback, dataset, max_epochs=1)
    assert callback.data_map.count.eq(1).all()
    net = Net()
    run = fit(net, callback, dataset, max_epochs=1)
    run.fit_loop.max_epochs = 3
    run.fit(net, DataLoader(dataset, batch_size=4))
    assert callback.data_map.count.eq(3).all()
    assert callback.data_map.snapshot_epochs == (1, 2, 3)
    assert first is not run


def test_a_fit_from_the_start_takes_the_size_of_its_training_set():
    callback = DataMapCallback()
    for size in (7, M, 5):
        fit(Net(), callback, with_ids(Subset(data(), range(size))), max_epochs=1)
        assert callback.data_map.count[:, 0].tolist() == [1] * size


class ByHand(Net):
    """Steps that Lightning does not count."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        returned = super().training_step(batch, batch_idx)
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(returned["loss"])
        optimizer.step()
        return returned


@pytest.mark.parametrize("again", ["a new trainer, a checkpoint", "the same trainer", "a new trainer"])
def test_a_training_whose_steps_are_not_counted_goes_on_with_its_map(tmp_path, again):
    dataset, callback, ckpt_path = with_ids(data()), DataMapCallback(), None
    run = fit(ByHand(), callback, dataset, max_epochs=1)
    assert run.global_step == 0
    if again == "the same trainer":
        run.fit_loop.max_epochs = 2
        run.fit(ByHand(), DataLoader(dataset, batch_size=4))
    else:
        if again.endswith("checkpoint"):
            ckpt_path = tmp_path / "one.ckpt"
            run.save_checkpoint(ckpt_path)
        fit(ByHand(), callback, dataset, max_epochs=2, ckpt_path=ckpt_path)
    assert callback.data_map.count.eq(2).all()
    assert callback.data_map.snapshot_epochs == (1, 2)


@pytest.mark.parametrize(
    ("asked", "named", "options"),
    [
        ([1, 9, 5], "5, 9", {}),
        (3, "3", {}),
        ([1, 2], None, {}),
        (2, None, {}),
        (None, None, {}),
        ([9], None, {"max_epochs": -1, "max_steps": 1}),
        ([9], None, {"fast_dev_run": True}),
    ],
)
def test_snapshots_beyond_the_last_epoch_are_warned_of(recwarn, asked, named, options):
    fit(Net(), DataMapCallback(snapshot_epochs=asked), **options)
    found = [w for w in recwarn if "snapshot_epochs" in str(w.message)]
    if named is None:
        assert not found
        return
    (warning,) = found
    assert warning.category is UserWarning
    assert f"snapshot_epochs must not go beyond the trainer's max_epochs (2); got {named}:" in str(warning.message)


def test_only_the_first_rank_warns_of_snapshots_beyond():
    other = SimpleNamespace(max_epochs=2, is_global_zero=False, fast_dev_run=False)
    DataMapCallback(snapshot_epochs=[9]).on_fit_start(other, Net())  # warnings fail tests


def test_a_map_that_is_handed_over_is_gone_on_with():
    given = DataMap(M, LAYOUT)
    given.update(torch.full((1, T), 0.5), torch.tensor([4]))
    callback = DataMapCallback(data_map=given)
    fit(Net(), callback)
    assert callback.data_map is given
    assert given.count[:, 0].tolist() == [2] * 4 + [3] + [2] * (M - 5)


def test_a_state_of_other_tasks_is_refused():
    callback, other = DataMapCallback(), DataMapCallback(TaskLayout.binary(["x"]))
    fit(Net(), callback)
    with pytest.raises(InvalidArgumentError, match="state"):
        other.load_state_dict(callback.state_dict())
    assert other.data_map is None
    with pytest.raises(InvalidArgumentError, match="state must hold data_map"):
        other.load_state_dict({"x": 1})


def test_a_map_with_snapshots_is_not_gone_on_with_unless_none_are_taken():
    given = DataMap(2, LAYOUT)
    given.snapshot(3)
    with pytest.raises(InvalidArgumentError, match="must hold no snapshots"):
        DataMapCallback(data_map=given)
    assert DataMapCallback(data_map=given, snapshot_epochs=None).data_map is given
