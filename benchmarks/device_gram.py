"""How many digits a Gram matrix keeps of nearly identical tasks: by centred float64 products, as on a GPU, and others.

``python benchmarks/device_gram.py`` writes ``results/device_gram.json``: the largest relative error of the squared
distances between 8 tasks whose 100,000 features differ by `apart`, against extended precision. It runs on the CPU,
through the code that serves maps on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from _fresh import save

from pymtg._clustering import distances_from_gram
from pymtg._device_gram import device_gram

TASKS, FEATURES, SLAB = 8, 100_000, 4096


def error(gram: torch.Tensor, truth: np.ndarray) -> float:
    """Return the largest relative error of the distances between different tasks."""
    apart = ~np.eye(TASKS, dtype=bool)
    return float((np.abs(distances_from_gram(gram.double().numpy()) - truth)[apart] / truth[apart]).max())


def main() -> None:
    torch.manual_seed(0)
    points = []
    for apart in (1e-1, 1e-2, 1e-3, 1e-4):
        x = torch.rand(FEATURES, 1) + apart * torch.rand(FEATURES, TASKS)
        exact = x.numpy().astype(np.longdouble)
        truth = ((exact[:, :, None] - exact[:, None, :]) ** 2).sum(0).astype(float)
        centred = x - x.mean(1, keepdim=True)
        points.append(
            {
                "apart": apart,
                "centred, float64": error(device_gram(TASKS, x.split(SLAB), torch.device("cpu")), truth),
                "centred, float32": error(centred.T @ centred, truth),
                "float32": error(x.T @ x, truth),
            }
        )
        print(points[-1])
    save("device_gram", "largest relative error of squared distances", points, tasks=TASKS, features=FEATURES)


if __name__ == "__main__":
    main()
