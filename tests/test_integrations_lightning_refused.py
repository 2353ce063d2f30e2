"""Lightning: pieces that are missing, and mistakes in options and in what is recorded."""

from __future__ import annotations

import sys

import pytest
import torch
from _lightning_runs import LAYOUT, THEIR_OWN_AFFAIRS, Mixed, Net, T, WithoutLogits, data, fit, trainer
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from pymtg import DataMap, TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, SampleIdError
from pymtg.hooks import RecordingError
from pymtg.integrations.lightning import DataMapCallback, DataMapMixin

pytestmark = THEIR_OWN_AFFAIRS


def test_missing_pieces_are_named():
    with pytest.raises(RecordingError, match=r"no logits under the key 'logits'.*\['loss'\].*a list of 3"):
        fit(WithoutLogits(), DataMapCallback(), limit_val_batches=0)
    with pytest.raises(RecordingError, match="no targets at position 7"):
        fit(Net(), DataMapCallback(targets=7), limit_val_batches=0)
    with pytest.raises(RecordingError, match=r"no ids under the key 'index': .* pymtg.data.with_ids"):
        fit(Net(), DataMapCallback(ids="index"), limit_val_batches=0)  # although the loader numbers its samples
    loader = DataLoader([{"x": torch.zeros(5), "y": torch.zeros(T)}] * 4, batch_size=2)

    class NoIds(Net):
        def training_step(self, batch, batch_idx):
            logits = self.linear(batch["x"])
            return {"loss": logits.sum(), "logits": logits, "targets": batch["y"]}

    with pytest.raises(RecordingError, match="no ids under the key 'sample_id'"):
        trainer(DataMapCallback()).fit(NoIds(), loader)

    class NoIdsMixed(DataMapMixin, NoIds):
        def training_step(self, batch, batch_idx):
            self.record(self.linear(batch["x"]), batch["y"])

    with pytest.raises(RecordingError, match="no sample ids for this batch"):
        trainer(DataMapCallback()).fit(NoIdsMixed(), loader)


class Source(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(with_ids(data()), batch_size=4)


class HookedSource(Source):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in")
def test_a_hook_of_the_data_module_in_the_place_of_the_mixins_is_named():
    callback = DataMapCallback()
    with pytest.raises(RecordingError, match="HookedSource has an on_after_batch_transfer"):
        trainer(callback).fit(Mixed(), datamodule=HookedSource())
    for module, source in ((Mixed(), Source()), (Net(), HookedSource())):
        trainer(callback).fit(module, datamodule=source)
        assert callback.data_map.count.eq(2).all()


def test_mistakes_in_what_is_recorded():
    with pytest.raises(SampleIdError):
        fit(Net(), DataMapCallback(num_samples=3), limit_val_batches=0)
    with pytest.raises(InvalidArgumentError, match="layout must be given"):
        fit(Net(), DataMapCallback(targets=lambda o, b: o["targets"][:, :2]), limit_val_batches=0)
    with pytest.raises(InvalidArgumentError, match="classification tasks only"):
        fit(Net(), DataMapCallback(TaskLayout.regression(["a", "b", "c"])), limit_val_batches=0)
    with pytest.raises(RuntimeError, match="state_key"):  # Lightning's own
        trainer(DataMapCallback(), DataMapCallback())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "x"}, InvalidTypeError, "layout"),
        ({"num_samples": 0}, InvalidArgumentError, "num_samples"),
        ({"logits": None}, InvalidTypeError, "logits"),
        ({"ids": True}, InvalidTypeError, "ids"),
        ({"name": ""}, InvalidArgumentError, "name"),
        ({"snapshot_epochs": 0}, InvalidArgumentError, "snapshot_epochs"),
        ({"snapshot_epochs": [0]}, InvalidArgumentError, "snapshot_epochs"),
        ({"snapshot_epochs": [1.5]}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshot_epochs": 1.5}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshot_epochs": "all"}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshots": "tape"}, InvalidArgumentError, "snapshots"),
        ({"ddof": 2}, InvalidArgumentError, "ddof"),
        ({"ignore_index": "x"}, InvalidTypeError, "ignore_index"),
        ({"data_map": 3}, InvalidTypeError, "data_map"),
        ({"data_map": DataMap(2, LAYOUT), "num_samples": 3}, InvalidArgumentError, "num_samples"),
        ({"data_map": DataMap(2, LAYOUT), "layout": TaskLayout.binary(["x"])}, InvalidArgumentError, "layout"),
    ],
)
def test_options_are_checked_when_the_callback_is_made(options, error, message):
    with pytest.raises(error, match=message):
        DataMapCallback(**options)


def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pymtg.integrations.lightning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'pymtg\[lightning\]'"):
        import pymtg.integrations.lightning  # noqa: F401
