"""Modules, data and trainings that the tests of the Lightning integration share."""

from __future__ import annotations

import logging

import pytest
import torch
from _observed import Observed
from _settings import new_seed
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pymtg import TaskLayout
from pymtg.data import with_ids
from pymtg.integrations.lightning import DataMapCallback, DataMapMixin

# Their own affairs: a deprecated call inside Lightning, advice on workers, logging intervals and checkpoints.
THEIR_OWN_AFFAIRS = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)


M, T = 23, 3
LAYOUT = TaskLayout.binary([f"task{t}" for t in range(T)])


class Net(LightningModule):
    """Returns what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(5, T)
        self.observed = Observed()

    def scored(self, ids, inputs, targets):
        logits = self.linear(inputs)
        if self.trainer.training:
            self.observed.note(logits, targets, ids)
        return logits, nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)

    def training_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits, loss = self.scored(ids, inputs, targets)
        return {"loss": loss, "logits": logits, "targets": targets}

    def validation_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        self.log("val_loss", self.scored(ids, inputs, targets)[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class WithoutLogits(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)["loss"]}


class Mixed(DataMapMixin, Net):
    """Sees batches without ids, and returns the loss alone."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        logits, loss = self.scored(self._pymtg_ids, inputs, targets)
        self.record(logits, targets)
        return loss

    def validation_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits = self.linear(inputs)
        self.record(logits, targets, ids)
        self.log("val_loss", logits.sum())


def data(size=M):
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 5, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 2, (size, T), generator=generator).float())


def trainer(*callbacks, max_epochs=2, **options):
    options = {"enable_checkpointing": False, "limit_val_batches": 2, **options}
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def fit(module, callback, dataset=None, max_epochs=2, ckpt_path=None, shuffle=True, callbacks=(), **options):
    dataset = with_ids(data()) if dataset is None else dataset
    loader = DataLoader(dataset, batch_size=4, shuffle=shuffle)
    given = callback if isinstance(callback, list) else [callback]
    run = trainer(*given, *callbacks, max_epochs=max_epochs, **options)
    run.fit(module, loader, DataLoader(dataset, batch_size=4), ckpt_path=ckpt_path)
    return run


def both(**options):
    return [DataMapCallback(**options), DataMapCallback(name="other", snapshot_epochs=[2, 3], snapshots="disk")]
