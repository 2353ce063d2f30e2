"""DMTG with a branch of one's own: groups and networks in one run, and a plain module at the end.

python examples/dmtg_own_branch.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from pymtg import DMTGTrainer
from pymtg.data import digits
from pymtg.nets import BranchedNet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--branches", type=int, default=3, help="how many branches, the most groups there can be")
parser.add_argument("--out", default="dmtg.pt", help="file for the network's weights")
options = parser.parse_args()


def branch() -> nn.Module:
    """Return one branch: any module from a batch of inputs to features ``[B, 128]``."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 128), nn.ReLU()
    )


data = digits(seed=0, val_size=0.15)
net = BranchedNet(branch, options.branches, data.layout, features=128)
trainer = DMTGTrainer(net, data.layout, epochs=options.epochs, keep_best=True, seed=0, num_threads=1)
trainer.fit(data.train, data.val)

print(trainer.groups_)
print(f"balanced accuracy {trainer.evaluate(data.test)['dmtg'].mean['balanced_accuracy']:.3f}")

model = trainer.model_.cpu()  # one head a task, and only the branches that are used; until here where it was trained
torch.save(model.state_dict(), options.out)
print("logits of new images:", tuple(model(data.test.inputs[:5]).shape))
