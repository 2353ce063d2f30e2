"""Lightning with a callback that records a data map, which goes into its checkpoints; then groups from the map.

Needs the extra ``lightning``. Run it: ``python examples/lightning_module.py``.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch import nn

from pymtg import cluster_tasks
from pymtg.data import digits, with_ids
from pymtg.integrations.lightning import DataMapCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="lightning.safetensors", help="file for the data map")
options = parser.parse_args()


class Digits(lightning.LightningModule):
    """Fifteen binary tasks on one network; nothing in it knows of pymtg but what training_step returns."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, num_tasks))
        self.criterion = nn.BCEWithLogitsLoss()

    def training_step(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the loss, and beside it what the map is made of."""
        sample_id, inputs, targets = batch
        logits = self.network(inputs)
        loss = self.criterion(logits, targets.float())
        return {"loss": loss, "logits": logits.detach(), "targets": targets, "sample_id": sample_id}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for all of the network."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


lightning.seed_everything(0, verbose=False)
data = digits(seed=0)
loader = torch.utils.data.DataLoader(with_ids(data.train), batch_size=32, shuffle=True)
recording = DataMapCallback(data.layout, snapshot_epochs=5)

trainer = lightning.Trainer(
    max_epochs=options.epochs,
    callbacks=[recording],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Digits(data.num_tasks), loader)

data_map = recording.data_map
data_map.save(options.out)
print(data_map)
print(cluster_tasks(data_map, n_clusters=3, random_state=0))
