"""What DMTG's options do on real data: one option changed at a time, 20 epochs, test scores over seeds.

    python benchmarks/dmtg_options.py MULAN_FOLDER [--seeds 5] [--out FILE]

MULAN_FOLDER holds scene, yeast and wq in Mulan's form. Writes benchmarks/results/dmtg-options.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from pymtg import DMTGTrainer
from pymtg.data import load
from pymtg.nets import Temperature, mlp

SETS = {
    "digits": ("digits", None, 3, "balanced_accuracy"),
    "scene": ("mulan:{}/scene", None, 2, "roc_auc"),
    "yeast": ("mulan:{}/yeast", None, 3, "roc_auc"),
    "wq": ("mulan:{}/wq", 14, 3, "r2"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 5": {"temperature": 5.0},
    "temperature 2.5 to 0.3": {"temperature": Temperature(2.5, 0.3)},
    "assignment_lr 3e-3": {"assignment_lr": 3e-3},
    "assignment_lr 3e-2": {"assignment_lr": 3e-2},
    "no rest of theta": {"assignment_warmup": 0.0},
    "theta rests for a tenth": {"assignment_warmup": 0.1},
    "no balance term": {"balance_weight": 0.0},
    "a draw per row": {"sampling": "per_sample"},
    "no noise (softmax)": {"sampling": "softmax"},
    "hard draws": {"sampling": "hard"},
    "entropy_weight 0.1": {"entropy_weight": 0.1},
    "start from 20 joint epochs": {"warm_epochs": 20},
    "15 epochs, 5 after pruning": {"epochs": 15, "finetune_epochs": 5},
    "60 epochs": {"epochs": 60},
    "random branches": {"assignment": "random"},
    "one branch (MTL)": {"num_groups": 1},
    "one branch, 60 epochs": {"num_groups": 1, "epochs": 60},
}


def run(name: str, folder: str, seed: int, options: dict[str, Any]) -> dict[str, float]:
    """Train once and return the test score and how decided the assignment is."""
    spec, targets, groups, metric = SETS[name]
    data = load(spec.format(folder), seed, targets=targets)
    merged = {"num_groups": groups, "epochs": 20, **options}
    trainer = DMTGTrainer(
        mlp(data.num_features, (128, 128)), data.layout, seed=seed, num_threads=1, progress=False, **merged
    ).fit(data.train)
    return {
        "score": trainer.evaluate(data.test)["dmtg"].mean[metric],
        "entropy": trainer.result_.entropies[-1],
        "branches_used": trainer.groups_.quality["branches_used"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dmtg-options.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in SETS:
        results[name] = {}
        for variant, options in VARIANTS.items():
            runs = [run(name, arguments.folder, seed, options) for seed in range(arguments.seeds)]
            results[name][variant] = runs
            print(f"{name:8} {variant:28} {sum(r['score'] for r in runs) / len(runs):.4f}", flush=True)
    metrics = {name: metric for name, (*_, metric) in SETS.items()}
    settings = {"seeds": arguments.seeds, "metrics": metrics, "torch": torch.__version__}
    arguments.out.write_text(json.dumps({"settings": settings, "sets": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
