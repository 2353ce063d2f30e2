"""Resident set of a long run, epoch by epoch: ``python benchmarks/memory_over_epochs.py [OUT.json]``.

STG and DMTG on scikit-learn's digits for 200 epochs a stage, with checkpoints and a log at every epoch, each in a
process of its own.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pymtg import DMTGTrainer, STGTrainer
from pymtg.data import digits
from pymtg.nets import mlp

EPOCHS = 200
OUT = Path(__file__).with_name("results") / "memory.json"
TRAINERS: dict[str, Any] = {
    "stg": lambda *a, **o: STGTrainer(*a, **o, specialised_epochs=EPOCHS, specialise="one-by-one"),
    "dmtg": lambda *a, **o: DMTGTrainer(*a, **o, record=True, drop_branches=False),
}


def resident_mb() -> float:
    """Return the resident set of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3


def measure(method: str, out: str) -> None:
    """Train, and write the resident set after every epoch of every stage."""
    seen: dict[str, list[float]] = {}
    data = digits(seed=0)

    def note(stage: str, record: object) -> None:
        seen.setdefault(stage, []).append(resident_mb())

    with tempfile.TemporaryDirectory() as folder:
        options = {"epochs": EPOCHS, "num_groups": 3, "num_threads": 1, "device": "cpu", "progress": False}
        places = {"checkpoint_dir": f"{folder}/kept", "log": f"{folder}/log.jsonl"}
        TRAINERS[method](mlp(64, (128, 128)), data.layout, **options, **places, on_epoch_end=note).fit(data.train)
    Path(out).write_text(json.dumps(seen))


def growth(values: list[float]) -> dict[str, Any]:
    """Return what a stage's resident set did: at the tenth epoch, at the end, at most, and its slope from the tenth."""
    later = torch.tensor(values[9:], dtype=torch.float64)
    at = torch.arange(len(later), dtype=torch.float64)
    slope = ((at - at.mean()) * (later - later.mean())).sum() / ((at - at.mean()) ** 2).sum()
    return {
        "epochs": len(values),
        "mb_epoch_10": values[9],
        "mb_last": values[-1],
        "mb_most": max(values),
        "kb_an_epoch": round(float(slope) * 1e3, 2),
        "mb": [round(value, 2) for value in values],
    }


def main() -> None:
    """Measure both methods and write the figures."""
    found: dict[str, Any] = {"torch": torch.__version__, "data": "digits", "methods": {}}
    for method in TRAINERS:
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/{method}.json"
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(method, out))
            process.start()
            process.join()
            seen = json.loads(Path(out).read_text())
        found["methods"][method] = {stage: growth(values) for stage, values in seen.items()}
        for stage, figures in found["methods"][method].items():
            print(method, stage, {name: value for name, value in figures.items() if name != "mb"})
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    gc.collect()
    main()
