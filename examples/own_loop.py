"""A training loop of one's own, with a data map of every task: one line more than without.

python examples/own_loop.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from pymtg import TaskLayout, cluster_tasks, record
from pymtg.data import digits, with_ids

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="own_loop.safetensors", help="file for the data map")
options = parser.parse_args()

torch.manual_seed(0)
data = digits(seed=0)  # any dataset of (input, targets [T])
network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, data.num_tasks))
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
loader = torch.utils.data.DataLoader(with_ids(data.train), batch_size=32, shuffle=True)

with record(criterion, TaskLayout.binary(data.layout.names), num_samples=len(data.train)) as recorder:
    for epoch in range(1, options.epochs + 1):
        for inputs, targets in recorder.batches(loader):  # the one line: it was `in loader`
            optimizer.zero_grad()
            loss = criterion(network(inputs), targets.float())
            loss.backward()
            optimizer.step()
        if epoch % 5 == 0 or epoch == options.epochs:
            recorder.snapshot(epoch)

recorder.data_map.save(options.out)
print(recorder.data_map)
print(cluster_tasks(recorder.data_map, n_clusters=3, random_state=0))
