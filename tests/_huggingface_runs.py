"""Models, samples and trainings that the tests of the Hugging Face integration share."""

from __future__ import annotations

import torch
from _observed import Observed
from _settings import new_seed
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainingArguments

from pymtg import TaskLayout
from pymtg.integrations.huggingface import DataMapTrainer

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
