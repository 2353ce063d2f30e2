"""What recording adds to a step of somebody else's loop: the hook, Lightning, the Hugging Face Trainer.

``python benchmarks/bench_integrations.py`` writes ``results/integrations.json``; with words as arguments it measures
the loops that are called so and leaves the others' points as they are. Each loop runs with and without the data map in
turn, in one process; the loop without has the plain data set, so that the ids' way through loader and collator is
counted. Processor time of whole epochs, one thread; medians of the rounds, the differences paired by round.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _fresh import RESULTS, save
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from pymtg import TaskLayout, record
from pymtg.data import with_ids
from pymtg.integrations import huggingface, lightning

BATCH, STEPS, EPOCHS, ROUNDS = 64, 40, 3, 11  # the first epoch of a fit is not counted
SIZE = BATCH * STEPS


def network(tasks: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, tasks))


def arrays(tasks: int) -> TensorDataset:
    return TensorDataset(torch.randn(SIZE, 64), torch.randint(2, (SIZE, tasks)).float())


# Each function fits once and returns the processor seconds of its epochs, in steps.


def hook(tasks: int, recording: bool) -> list[float]:
    model, loss = network(tasks), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = arrays(tasks)
    loader: Any = DataLoader(with_ids(data) if recording else data, BATCH, shuffle=True)
    if recording:
        recorder = record(loss, TaskLayout.binary([f"t{t}" for t in range(tasks)]), SIZE).attach()
        loader = recorder.batches(loader)
    seconds = []
    for _ in range(EPOCHS):
        start = time.process_time()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
        seconds.append(time.process_time() - start)
    return [epoch / STEPS for epoch in seconds[1:]]


class Plain(LightningModule):
    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.net = network(tasks)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        return nn.functional.binary_cross_entropy_with_logits(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Returning(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, inputs, targets = batch
        logits = self.net(inputs)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets)
        return {"loss": loss, "logits": logits, "targets": targets}


class Mixed(lightning.DataMapMixin, Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        logits = self.net(inputs)
        self.record(logits, targets)
        return nn.functional.binary_cross_entropy_with_logits(logits, targets)


class LightningClock(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def fit(module: type[Plain]) -> Callable[[int, bool], list[float]]:
    def run(tasks: int, recording: bool) -> list[float]:
        clock, data = LightningClock(), arrays(tasks)
        callbacks: list[Any] = [lightning.DataMapCallback(snapshot_epochs=None)] * recording
        trainer = LightningTrainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, clock],
        )
        loader = DataLoader(with_ids(data) if recording else data, BATCH, shuffle=True)
        trainer.fit((module if recording else Plain)(tasks), loader)
        return [epoch / STEPS for epoch in clock.seconds[1:]]

    return run


class Sentences(Dataset):
    def __init__(self, tasks: int) -> None:
        size = SIZE // 2  # a step takes longer
        self.inputs, self.labels = torch.randint(1000, (size, 32)), torch.randint(2, (size, tasks)).float()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


class TrainerClock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def train(tasks: int, recording: bool) -> list[float]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=1000, max_position_embeddings=32, num_labels=tasks, **sizes)
    config.problem_type = "multi_label_classification"
    clock = TrainerClock()
    callbacks: list[Any] = [huggingface.DataMapCallback(snapshot_epochs=None)] * recording
    with tempfile.TemporaryDirectory() as folder:
        trainer = (huggingface.DataMapTrainer if recording else HuggingFaceTrainer)(
            model=BertForSequenceClassification(config),
            args=TrainingArguments(
                folder,
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=BATCH,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Sentences(tasks),
            callbacks=[*callbacks, clock],
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return [epoch / (STEPS // 2) for epoch in clock.seconds[1:]]


LOOPS = {
    "hook: record": hook,
    "Lightning: DataMapCallback": fit(Returning),
    "Lightning: DataMapMixin": fit(Mixed),
    "Hugging Face: DataMapTrainer": train,
}


def kept() -> list[dict[str, Any]]:
    path = RESULTS / "integrations.json"
    return json.loads(path.read_text())["points"] if path.exists() else []


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    words = sys.argv[1:]
    chosen = {name: loop for name, loop in LOOPS.items() if not words or any(word in name for word in words)}
    points = [point for point in kept() if point["loop"] not in chosen]
    for name, loop in chosen.items():
        for tasks in (15, 100):
            per_step: dict[bool, list[float]] = {False: [], True: []}
            for number in range(ROUNDS + 1):
                for recording in (False, True) if number % 2 else (True, False):
                    seconds = statistics.median(loop(tasks, recording))
                    if number:  # the first round warms up
                        per_step[recording].append(seconds)
            pairs = list(zip(per_step[False], per_step[True], strict=True))
            adds = [after - before for before, after in pairs]
            point = {"loop": name, "tasks": tasks, "batch": BATCH, "rounds": ROUNDS}
            point |= {"without": statistics.median(per_step[False]), "with": statistics.median(per_step[True])}
            quartiles = statistics.quantiles(adds, n=4)
            point |= {"adds": quartiles[1], "adds_quartiles": [quartiles[0], quartiles[2]]}
            point["ratio"] = statistics.median(after / before for before, after in pairs)
            points.append(point)
            print(point, flush=True)
    points.sort(key=lambda point: list(LOOPS).index(point["loop"]))
    save("integrations", "processor seconds a step of a loop, with and without its data map", points)


if __name__ == "__main__":
    main()
