"""The files of a profile: one trace from its windows, and the table of where the time went as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymtg._files import replacing

__all__ = ["OUTSIDE", "REST", "TABLE", "TRACE", "Operator", "Profile", "Spent", "save_profile"]

TRACE, TABLE = "pymtg.pt.trace.json", "profile.txt"
REST, OUTSIDE = "the rest", "outside the stages"
_OPERATORS = 12  # in the table; the JSON file has all


@dataclass
class Spent:
    """What went into spans of one name in one stage: how often, and the seconds without the spans within."""

    calls: int = 0
    seconds: float = 0.0


@dataclass
class Operator:
    """What went into one of torch's operators in the trace, without those it called: microseconds."""

    calls: int = 0
    cpu: float = 0.0
    device: float = 0.0


@dataclass
class Profile:
    """What was measured: spans by stage and name, operators by stage and name, seconds in all, the trace's windows."""

    device: str
    seconds: float = 0.0
    spans: dict[tuple[str, str], Spent] = field(default_factory=dict)
    ranges: dict[tuple[str, str], Operator] = field(default_factory=dict)
    operators: dict[tuple[str, str], Operator] = field(default_factory=dict)
    windows: list[Path] = field(default_factory=list)
    own: float = 0.0
    """Seconds of the profiler's own, which are in no span."""

    def by_stage(self) -> list[tuple[str, str, Spent]]:
        """Return stages, names and times, stage by stage as they came, what was in none at the end."""
        stages = list(dict.fromkeys(stage for stage, _ in self.spans))
        place = {stage: len(stages) if stage == "" else i for i, stage in enumerate(stages)}
        return sorted(((*key, spent) for key, spent in self.spans.items()), key=lambda row: place[row[0]])


def save_profile(directory: Path, profile: Profile) -> None:
    """Write the trace, ``profile.json`` and ``profile.txt``, each whole or not at all."""
    with replacing(directory / TRACE) as temporary:
        _join_windows(profile.windows, temporary)
    with replacing(directory / "profile.json") as temporary:
        temporary.write_text(json.dumps(_as_json(profile), indent=1) + "\n", encoding="utf-8")
    with replacing(directory / TABLE) as temporary:
        temporary.write_text(_as_text(profile), encoding="utf-8")


def _join_windows(windows: Sequence[Path], target: Path) -> None:
    """Write the windows' events as one trace; only one window is in memory at a time.

    All windows of a process count their microseconds from the same moment, ``baseTimeNanoseconds``.
    """
    head: dict[str, Any] = {}
    named: set[str] = set()
    with target.open("w", encoding="utf-8") as file:
        file.write('{"traceEvents": [')
        between = "\n"
        for window in windows:
            content = json.loads(window.read_text(encoding="utf-8"))
            for event in content.pop("traceEvents"):
                text = json.dumps(event)
                if event.get("ph") == "M":  # names of processes and threads: once
                    name = json.dumps([event.get(key) for key in ("name", "pid", "tid", "args")])
                    if name in named:
                        continue
                    named.add(name)
                file.write(between + text)
                between = ",\n"
            head = head or content
        kept = ("schemaVersion", "deviceProperties", "displayTimeUnit", "baseTimeNanoseconds")
        rest = {key: head[key] for key in kept if key in head}
        file.write(f"\n], {json.dumps(rest)[1:]}" if rest else "\n]}")


def _as_json(profile: Profile) -> dict[str, Any]:
    total = profile.seconds or 1.0
    return {
        "device": profile.device,
        "seconds": profile.seconds,
        "profiler_seconds": profile.own,
        "spans": [
            {"stage": stage, "name": name, "calls": s.calls, "seconds": s.seconds, "share": s.seconds / total}
            for stage, name, s in profile.by_stage()
        ],
        "traced": {
            kind: [
                {"stage": stage, "name": name, "calls": o.calls, "cpu_us": o.cpu, "device_us": o.device}
                for (stage, name), o in found.items()
            ]
            for kind, found in (("spans", profile.ranges), ("operators", profile.operators))
        },
    }


def _as_text(profile: Profile) -> str:
    device = profile.device != "cpu"
    columns = ["stage", "span", "calls", "seconds", "share", *(["device ms a call, traced"] if device else [])]
    total = profile.seconds or 1.0
    rows, last = [], None
    for stage, name, spent in profile.by_stage():
        row = [(stage or "no stage") if stage != last else "", name, f"{spent.calls:,}", f"{spent.seconds:.3f}"]
        row.append(f"{100 * spent.seconds / total:.1f}%")
        if device:
            traced = profile.ranges.get((stage, name))
            row.append("-" if traced is None else f"{traced.device / traced.calls / 1e3:.3f}")
        rows.append(row)
        last = stage
    text = f"where {profile.seconds:.2f} s went, beside {profile.own:.2f} s of the profiler's own "
    text += "(host time, without the spans within a span)\n\n"
    text += _table(columns, rows)
    return text + "\ntorch's operators in the trace (without those they call)\n\n" + _operators(profile, device)


def _operators(profile: Profile, device: bool) -> str:
    """Return the operators that took most over all stages, by the device's time where there is one."""
    found: dict[str, Operator] = {}
    for (_, name), one in profile.operators.items():
        to = found.setdefault(name, Operator())
        to.calls, to.cpu, to.device = to.calls + one.calls, to.cpu + one.cpu, to.device + one.device

    def key(one: Operator) -> float:
        return one.device if device else one.cpu

    whole = sum(map(key, found.values())) or 1.0
    most = sorted(found.items(), key=lambda item: -key(item[1]))[:_OPERATORS]
    rows = []
    for name, one in most:
        times = [one.cpu, one.device] if device else [one.cpu]
        rows.append([name, f"{one.calls:,}", *(f"{t / 1e3:.3f}" for t in times), f"{100 * key(one) / whole:.1f}%"])
    return _table(["operator", "calls", "CPU ms", *(["device ms"] if device else []), "share"], rows, words=1)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> str:
    """Return aligned columns, the first `words` of them to the left."""
    lines = [list(columns), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    pad = [str.ljust if i < words else str.rjust for i in range(len(columns))]
    return "".join("  ".join(pad[i](c, widths[i]) for i, c in enumerate(line)).rstrip() + "\n" for line in lines)
