"""How long importing pymtg takes beyond torch's own import: ``python benchmarks/import_time.py [OUT.json]``.

Processor time in fresh processes, files in the caches; a process for every statement and round, medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

OUT = Path(__file__).with_name("results") / "import_time.json"
ROUNDS = 5
STATEMENTS = (
    "import pymtg",
    "from pymtg import DataMap, MultiTaskLoss, TaskLayout",
    "from pymtg import STGTrainer, DMTGTrainer",
    "from pymtg import STGTrainer, cluster_tasks",
)


SCRIPT = """
import time
start = time.process_time()
import torch
between = time.process_time()
{}
print(between - start, time.process_time() - between)
"""


def processor_seconds(statement: str) -> tuple[float, float]:
    """Return the processor time of importing torch and then of a statement, in a new process."""
    command = [sys.executable, "-c", SCRIPT.format(statement)]
    torch, own = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(torch), float(own)


def main() -> None:
    """Measure and write the figures."""
    alone: list[float] = []
    beyond: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    processor_seconds(STATEMENTS[-1])
    for _ in range(ROUNDS):
        for statement, found in beyond.items():
            torch, own = processor_seconds(statement)
            alone.append(torch)
            found.append(own)
    result = {
        "torch": version("torch"),
        "rounds": ROUNDS,
        "torch_seconds": statistics.median(alone),
        "beyond_torch_seconds": {statement: statistics.median(found) for statement, found in beyond.items()},
    }
    print(json.dumps(result, indent=1))
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
