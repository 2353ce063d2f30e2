"""Measurements each in a process of its own, and what a step adds to the resident set; shared by the scale scripts."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return a call's result, its seconds, its processor seconds and by how many MB it raised the resident set."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, start, cpu = status_mb("VmRSS"), time.perf_counter(), time.process_time()
    result = call()
    figures = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return result, figures | {"rise_mb": status_mb("VmHWM") - before}


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6


def in_fresh_process(script: str, point: dict[str, Any]) -> dict[str, Any]:
    """Run a script with a point as its argument; return the point with what it printed, which is JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, json.dumps(point)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr}")
    found = point | json.loads(done.stdout.splitlines()[-1]) | {"load_average": os.getloadavg()[0]}
    print(json.dumps(found), flush=True)
    return found


def save(name: str, what: str, points: list[dict[str, Any]], **more: Any) -> None:
    """Write the points and the machine to ``results/NAME.json``."""
    import torch

    from pymtg import _core

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    document = {
        "what": what,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {"cpu": model, "cores": os.cpu_count(), "instruction_set": _core.isa(), "torch": torch.__version__},
        "threads": 1,
        "shared": f"load average {os.getloadavg()[0]:.1f}; processor seconds count this work alone",
        "points": points,
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
