"""Does DMTG find groups that are there? Nine binary tasks in three groups, branches of several widths.

A group's labels are the sign of one random direction of 24, with a little noise per task. A branch of one unit has room
for one direction only, so that three groups need three branches; wider ones can serve several. With the trainer's
defaults; without what is ours, the balance term and heads that start at zero; and with a rest of theta in the first
steps that is none or longer. Writes benchmarks/results/planted.json: per variant, width and seed the adjusted Rand
index of what was found.

    python benchmarks/planted_groups.py [--seeds 20] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from pymtg import DMTGTrainer, TaskLayout
from pymtg.nets import BranchedNet

TRUTH = [t % 3 for t in range(9)]
LAYOUT = TaskLayout.binary([f"task{t}" for t in range(9)])
ROWS, INPUTS, NOISE = 4096, 24, 0.1
WIDTHS = (1, 2, 3, 8, 32)
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no balance term": {"balance_weight": 0.0},
    "random heads": {"zero_heads": False},
    "neither": {"balance_weight": 0.0, "zero_heads": False},
    "no rest of theta": {"assignment_warmup": 0.0},
    "a rest of a tenth": {"assignment_warmup": 0.1},
}


def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [4096, 24] and labels [4096, 9]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    directions = torch.randn(INPUTS, 3, generator=generator)
    values = x @ (directions / directions.norm(dim=0))
    labels = [values[:, group] + NOISE * torch.randn(ROWS, generator=generator) > 0 for group in TRUTH]
    return x, torch.stack(labels, dim=1).long()


def found(seed: int, width: int, *, zero_heads: bool = True, **options: Any) -> dict[str, Any]:
    """Train with the trainer's defaults, or with `options` instead, and compare the groups with the truth."""

    def net(layout: TaskLayout) -> BranchedNet:
        made = BranchedNet(lambda: nn.Linear(INPUTS, width), 3, layout, width)
        if not zero_heads:  # as torch's linear layers start
            for parameter in made.heads.parameters():
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        return made

    start = time.perf_counter()
    trainer = DMTGTrainer(net, LAYOUT, seed=seed, num_threads=1, progress=False, **options).fit(planted(1000 + seed))
    return {
        "rand_index": float(adjusted_rand_score(TRUTH, trainer.groups_.labels)),
        "branches_used": len(set(trainer.groups_.labels.tolist())),
        "entropy": trainer.result_.entropies[-1],
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    default = Path(__file__).parent / "results" / "planted.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for variant, options in VARIANTS.items():
        results[variant] = {}
        for width in WIDTHS:
            runs = [found(seed, width, **options) for seed in range(arguments.seeds)]
            results[variant][str(width)] = runs
            exact = sum(run["rand_index"] == 1 for run in runs)
            mean = sum(run["rand_index"] for run in runs) / len(runs)
            print(f"{variant}, width {width}: {exact} of {len(runs)} exact, mean index {mean:.2f}")
    settings = {"rows": ROWS, "inputs": INPUTS, "noise": NOISE, "seeds": arguments.seeds, "torch": torch.__version__}
    arguments.out.write_text(json.dumps({"settings": settings, "variants": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
