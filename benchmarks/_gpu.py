"""What the GPU benchmarks share: the device or, for a dry run, the CPU; paired timing by events; graphs; launches.

``--dry-run`` runs everything in tiny sizes, on the CPU where there is no device, to see that it runs at all: its files
say so and are not for `benchmarks/results`. ``--warm 0/3`` runs the kernels of a third of the shapes once, so that they
are compiled when it comes to measuring: Triton and torch.compile keep what they made on the disk. What fails is noted
and the rest goes on.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")

RESULTS = Path(__file__).resolve().parent / "results"


class Run:
    """One benchmark script at work: where it runs, how long it may take, where its JSON goes."""

    def __init__(self, name: str, what: str, arguments: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=what)
        parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU where there is no device")
        parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
        parser.add_argument("--rounds", type=int, default=15)
        parser.add_argument("--warm", metavar="PART/PARTS", help="compile what this part of the shapes needs")
        options = parser.parse_args(arguments)
        self.dry: bool = options.dry_run
        self.warm: bool = options.warm is not None
        self._part, self._parts = (int(n) for n in (options.warm or "0/1").split("/"))
        self.rounds: int = 2 if self.dry else options.rounds
        self._awake = False
        on_cpu = self.dry and not torch.cuda.is_available()
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
        self.path: Path = options.out / f"gpu_{name}.json"
        self.document: dict[str, Any] = {"what": what, "date": today(), "device": self._about(), "points": []}

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return what of these to run: all, but for a part when warming up."""
        return items[self._part :: self._parts]

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Keep the point that `measure` returns; where it fails, note why, so that the next one has its turn."""
        start = time.perf_counter()
        try:
            point = measure()
        except Exception as error:  # whatever it is: there may be no second chance on this device
            traceback.print_exc()
            self.failed(name, error)
        else:
            if not self.warm:
                self.add(point)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        torch._dynamo.reset()  # compiled functions hold on to the maps of their forms
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def failed(self, name: str, error: Exception) -> None:
        """Note what failed and why."""
        print(f"FAILED {name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        self.document.setdefault("failed", {})[name] = f"{type(error).__name__}: {str(error)[:500]}"
        self._write()

    def status(self) -> int:
        """Return the exit status: 1 where something failed."""
        return int("failed" in self.document)

    def add(self, point: dict[str, Any]) -> None:
        """Keep a point: the file is written at once, so that a run cut short leaves what it has."""
        print(json.dumps(point), flush=True)
        self.document["points"].append(point)
        self._write()

    def _write(self) -> None:
        if self.warm:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.document, indent=1) + "\n")
        partial.rename(self.path)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """torch.compile; a dry run traces only."""
        torch._dynamo.reset()
        if self.dry:
            options = {"backend": "eager"}
        return torch.compile(function, fullgraph=True, dynamic=False, **options)

    def paired(
        self, calls: dict[str, Callable[[], object]], most_seconds: float = 20.0, rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Time all calls in turn, round after round: seconds of one call per round, at least three rounds each.

        A call is repeated within a round until it took 2 ms. When warming up each is called once, and no time told.
        """
        if self.warm:
            for call in calls.values():
                call()
            return {name: [1.0] for name in calls}
        self._wake()
        rounds = self.rounds if rounds is None or self.dry else rounds
        repeats, left = {}, {}
        share = most_seconds / max(len(calls), 1)
        for name, call in calls.items():
            for _ in range(3):
                call()
            once = self._seconds(call, 1)
            repeats[name] = 1 if self.dry else max(1, min(200, int(0.002 / max(once, 1e-7))))
            left[name] = max(3, min(rounds, int(share / max(once * repeats[name], 1e-7))))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(max(left.values(), default=0)):
            for name, call in calls.items():
                if left[name] > 0:
                    left[name] -= 1
                    seconds[name].append(self._seconds(call, repeats[name]))
        return seconds

    def _wake(self) -> None:
        """Keep the device busy for a while: it idles at a fraction of its clocks."""
        if self.device.type != "cuda":
            return
        numbers, end = torch.ones(2**24, device=self.device), time.perf_counter() + (0.02 if self._awake else 0.5)
        self._awake = True
        while time.perf_counter() < end:
            numbers.mul_(1.0)
            torch.cuda.synchronize()

    def _seconds(self, call: Callable[[], object], repeats: int) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) / repeats
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return a call that replays `call` as a CUDA graph; on the CPU the call itself."""
        if self.device.type != "cuda" or self.warm:
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def launches(self, call: Callable[[], object]) -> dict[str, int] | None:
        """Return how often each kernel runs in one call, by name; None on the CPU."""
        if self.device.type != "cuda" or self.warm:
            call()
            return None
        call()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        counts: dict[str, int] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                counts[event.name[:80]] = counts.get(event.name[:80], 0) + 1
        return counts

    def peak_mb(self, call: Callable[[], object]) -> float | None:
        """Return by how many MB the allocated memory rose in one call; None on the CPU."""
        call()
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def backends(self) -> list[str]:
        """Return the backends to compare: those for the device, plain torch last."""
        import pymtg
        from pymtg._backend import backend_named

        names = [name for name in pymtg.available_backends() if backend_named(name).serves(self.device)]
        return [*(name for name in names if name != "reference"), *(["reference"] if "reference" in names else [])]

    def kernels(self) -> list[str]:
        """Return the backends whose kernels are compared: plain torch is one of them in a dry run only."""
        return [name for name in self.backends() if self.dry or name != "reference"]

    def copies(self, megabytes: int = 512) -> Callable[[], object]:
        """Return a copy within the device's memory: the bandwidth that all is compared with."""
        source = torch.empty((1 if self.dry else megabytes) * 250_000, device=self.device).normal_()
        target = torch.empty_like(source)
        self.copied_bytes = 2 * source.nbytes
        return lambda: target.copy_(source)

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {"torch": torch.__version__, "dry_run": self.dry}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            about |= {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "gigabytes": round(properties.total_memory / 2**30),
                "cuda": torch.version.cuda,
            }
        else:
            about["name"] = "CPU"
        return about


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items() if values}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of theirs / ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=False))
