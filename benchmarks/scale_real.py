"""Real sets with many tasks, end to end on the command line: time, memory, and quality against one joint network.

``python benchmarks/scale_real.py DIR`` runs ``pymtg stg`` on delicious (983 tasks) and bibtex (159) and ``pymtg dmtg``
on bibtex, from Mulan's files in DIR, with one thread each, and writes ``results/scale_real.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _fresh import save

COMMON = ["--epochs", "20", "--batch-size", "64", "--seed", "0", "--threads", "1", "--quiet"]
RUNS = [
    ("delicious", "stg", ["--groups", "auto"]),
    ("delicious", "stg", ["--groups", "auto", "--init", "joint", "--snapshots", "gram"]),
    ("bibtex", "stg", ["--groups", "auto"]),
    ("bibtex", "dmtg", ["--groups", "5"]),
]
METRICS = ("average_precision", "roc_auc", "balanced_accuracy")


def run(folder: Path, name: str, command: str, options: list[str]) -> dict:
    """Run one command; return its figures."""
    with tempfile.TemporaryDirectory() as out:
        words = [command, "--data", f"mulan:NAME/{name}", *options, *COMMON]
        real = [word.replace("NAME", str(folder)) for word in words]
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen([sys.executable, "-m", "pymtg", *real, "--out", out], env=environment) as process:
            _, status, usage = os.wait4(process.pid, 0)  # the usage of this process alone
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, real
        metrics = json.loads((Path(out) / "metrics.json").read_text())
        scores = {method: {m: figures["mean"][m] for m in METRICS} for method, figures in metrics["scores"].items()}
        files = {path.name: path.stat().st_size / 1e6 for path in sorted(Path(out).iterdir())}
    return {
        "command": "pymtg " + " ".join(words),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
        "tasks": len(next(iter(metrics["scores"].values()))["tasks"]),
        "scores": scores,
        "stages": [{key: stage[key] for key in ("name", "seconds")} for stage in metrics["stages"]],
        "files_mb": files,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Run all."""
    points = []
    for name, command, options in RUNS:
        points.append(run(Path(sys.argv[1]), name, command, options))
        print(json.dumps(points[-1]), flush=True)
    save("scale_real", "sets with many tasks, end to end", points)


if __name__ == "__main__":
    main()
