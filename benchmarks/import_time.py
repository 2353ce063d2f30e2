"""How long importing pymtg takes beyond torch's own import: ``python benchmarks/import_time.py [OUT.json]``.

Processor time of fresh processes, warm caches: torch alone and torch with pymtg in turn, the median of the differences.
"""

from __future__ import annotations

import json
import resource
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
    "from pymtg import STGTrainer, cluster_tasks",
)


def processor_seconds(statements: str) -> float:
    """Return the processor time of a new process that runs some statements."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statements], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and write the figures."""
    alone: list[float] = []
    beyond: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    processor_seconds("; ".join(["import torch", *STATEMENTS]))  # files into the caches
    for _ in range(ROUNDS):
        for statement, found in beyond.items():
            alone.append(processor_seconds("import torch"))
            found.append(processor_seconds(f"import torch; {statement}") - alone[-1])
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
