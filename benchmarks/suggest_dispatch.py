"""What ``results/gpu_backends.json`` says of the order of preference in ``pymtg/_dispatch.py``, for CUDA.

``python benchmarks/suggest_dispatch.py [FOLDER]`` prints the backends by the geometric mean of their times over that of
the best at every shape, and where another than the first is ahead by more than a tenth.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def behind(points: list[dict[str, Any]]) -> dict[str, float]:
    """Return by which factor each backend is behind the best on average, the first first; kernels by all points."""
    names = {name for point in points for name in point["seconds"]}
    logarithms = {
        name: [math.log(p["seconds"][name] / min(p["seconds"].values())) for p in points if name in p["seconds"]]
        for name in names
    }
    found = {name: math.exp(sum(values) / len(values)) for name, values in logarithms.items()}
    # Plain torch is timed at small shapes only: it is the fallback, whatever its mean.
    return dict(sorted(found.items(), key=lambda item: (item[0] == "reference", item[1])))


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    path = (Path(given[0]) if given else RESULTS) / "gpu_backends.json"
    points = json.loads(path.read_text())["points"] if path.exists() else []
    if not points:
        print(f"no points in {path}")
        return 1
    order = behind(points)
    for name, factor in order.items():
        wins = sum(point["fastest"] == name for point in points)
        print(f"{name}: {factor:.3f} times the best on average, the best at {wins} of {len(points)} shapes")
    first = next(iter(order))
    for p in points:
        lost = p["seconds"].get(first, math.inf) / p["seconds"][p["fastest"]]
        if lost > 1.1:
            shape = f"{p['rows']} x {p['tasks']} x {p['classes']}, {p['dtype'].removeprefix('torch.')}"
            print(f"  {shape}: {p['fastest']} is {lost:.2f} times as fast as {first}")
    print(f'PREFERENCE["cuda"] = {tuple(order)!r}, if tests/gpu passed for each')
    return 0


if __name__ == "__main__":
    sys.exit(main())
