"""Paired timing and peak memory, shared by the benchmarks."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def paired_seconds(calls: dict[str, Callable[[], object]], rounds: int, most_seconds: float) -> dict[str, list[float]]:
    """Time all calls in turn, round after round, so that a machine that changes speed changes it for all.

    Returns the seconds of one call per round. A call is repeated within a round until it took 10 ms; calls that take
    more than `most_seconds` / `rounds` get fewer rounds, at least three.
    """
    repeats, left = {}, {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(0.010 / max(once, 1e-7)))
        left[name] = max(3, min(rounds, int(most_seconds / max(once, 1e-7))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            if left[name] == 0:
                continue
            left[name] -= 1
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of theirs / ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=False))


def peak_mb(call: Callable[[], object]) -> float | None:
    """Return by how many MB the resident set rose during the call; None where the kernel does not say."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return max(0.0, (_status("VmHWM") - before) / 1e3)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
