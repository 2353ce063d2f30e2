"""Two processes that train together, for test_integrations_ranks.py: Lightning, the Trainer, a metric, merging."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from transformers import TrainingArguments
from transformers import __version__ as transformers_version

from pymtg import TaskLayout
from pymtg._ranks import leave
from pymtg.data import with_ids
from pymtg.errors import RankError
from pymtg.integrations._recording import MapRecording
from pymtg.integrations.huggingface import DataMapCallback as TrainerDataMapCallback
from pymtg.integrations.huggingface import DataMapTrainer
from pymtg.integrations.lightning import DataMapCallback
from pymtg.integrations.torchmetrics import DataMapMetric

# Before 5.8 transformers asks torch to load the optimizer to "cpu:0" there, which torch refuses.
RESUMES = {"lightning": True, "huggingface": Version(transformers_version) >= Version("5.8")}
RANKS, SIZE = 2, 21  # one batch is not full, and one sample has to be repeated
LAYOUT = TaskLayout.binary(["a", "b"])


def samples(seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(3, generator=generator), "labels": torch.randint(2, (2,), generator=generator).float()}
        for _ in range(SIZE)
    ]


class Seen:
    """The rows that this process trained on, those of copies included."""

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, ...]] = []

    def note(self, logits, targets, ids) -> None:
        self.batches.append((logits.detach().clone(), targets.clone(), ids.clone()))


class Module(LightningModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 2)
        self.seen = Seen()

    def training_step(self, batch, batch_idx):
        logits = self.linear(batch["x"])
        self.seen.note(logits, batch["labels"], batch["sample_id"])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
        return {"loss": loss, "logits": logits, "targets": batch["labels"]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def lightning(folder: Path, seed: int, resume: bool) -> dict[str, object]:
    """Three epochs, the first two of which end a first run where `resume` is set; with checkpoints within epochs."""
    folder, ckpt = folder / str(resume), None
    for epochs in (2, 3) if resume else (3,):
        callback, module = DataMapCallback(LAYOUT, snapshot_epochs=2), Module(seed)
        saving = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2, save_last=True)
        trainer = LightningTrainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=RANKS,
            strategy="ddp",
            logger=False,
            callbacks=[callback, saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(with_ids(samples(seed)), batch_size=4, shuffle=True), ckpt_path=ckpt)
        ckpt = folder / "last.ckpt"
    return {"map": callback.data_map.state_dict(), "seen": module.seen.batches}


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 2)
        self.seen = Seen()

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


class Noting(DataMapTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.noted = inputs["labels"], inputs["sample_id"]
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.model.seen.note(outputs["logits"], *self.noted)
        return (loss, outputs) if return_outputs else loss


def huggingface(folder: Path, seed: int, resume: bool) -> dict[str, object]:
    """Three epochs, with gradient accumulation, a checkpoint within each; resumed from within the second or not."""
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=3,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = TrainerDataMapCallback(LAYOUT, snapshot_epochs=2)
    trainer = Noting(model=Net(seed), args=arguments, train_dataset=samples(seed), callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return {"map": callback.data_map.state_dict(), "seen": trainer.model.seen.batches}


def metric(seed: int, rank: int) -> dict[str, object]:
    """A metric with other rows on each process, in a collection."""
    generator = torch.Generator().manual_seed(seed + rank)
    own = DataMapMetric(LAYOUT, SIZE, missing=True)
    collection, seen = MetricCollection({"map": own}), Seen()
    for _ in range(3 + rank):
        logits = torch.randn(5, 2, generator=generator)
        targets = torch.randint(2, (5, 2), generator=generator)
        targets[0, 1] = -100
        ids = torch.randint(SIZE, (5,), generator=generator)
        collection.update(logits, targets, sample_ids=ids)
        seen.note(logits, targets, ids)
    with own.sync_context():
        merged = own.data_map.state_dict()
    return {"computed": collection.compute(), "map": merged, "alone": own.data_map.state_dict(), "seen": seen.batches}


def disagreements(rank: int) -> list[str]:
    """What every process is told where their maps cannot be merged."""
    told = []
    for recording in (half_recorded(rank), half_recorded(0, num_samples=3 + rank)):
        try:
            recording.end_epoch()
        except RankError as error:
            told.append(str(error))
    return told


def half_recorded(rank: int, num_samples: int = 4) -> MapRecording:
    """Return a recording that only rank 0 has recorded into."""
    recording = MapRecording(LAYOUT, num_samples)
    if rank == 0:
        recording.record(torch.zeros(1, 2), torch.zeros(1, 2), [0])
    return recording


def main(rank: int, folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "TORCHELASTIC_RUN_ID": "x"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the group is there before either trainer asks
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    try:
        out: dict[str, object] = {"metric": metric(seed, rank), "told": disagreements(rank)}
        for name, run in (("lightning", lightning), ("huggingface", huggingface)):
            out[name] = run(folder / name, seed, resume=False)
            if RESUMES[name]:
                out[f"{name} resumed"] = run(folder / name, seed, resume=True)
        torch.save(out, folder / f"rank{rank}.pt")
    finally:
        leave()


if __name__ == "__main__":
    # forked, so that everything is imported once: that takes longer than all the training
    forking = multiprocessing.get_context("fork")
    ranks = [forking.Process(target=main, args=(r, Path(sys.argv[1]), int(sys.argv[2]))) for r in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(500)
    finally:
        for process in ranks:
            process.kill()
    sys.exit(max(process.exitcode or 0 for process in ranks))
