"""What ``profile=`` costs, off and on: ``python benchmarks/profile_cost.py [OUT.json]``.

Processor time of one empty span (what is left of profiling where it is off), of a training step on scikit-learn's
digits, and of whole runs with and without a profile, in turn; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pymtg import STGTrainer
from pymtg._ranges import each, span
from pymtg.data import digits
from pymtg.nets import mlp

OUT = Path(__file__).with_name("results") / "profile_cost.json"
ROUNDS, EPOCHS = 7, 10
SPANS = (
    4  # of a step, beside the one around the batches, which is no more than the iterator itself where profiling is off
)


def off_span_ns(repeats: int = 200_000) -> float:
    """Processor time of an empty span, less that of an empty loop."""

    def spans() -> None:
        for _ in range(repeats):
            with span("name"):
                pass

    def nothing() -> None:
        for _ in range(repeats):
            pass

    return (timed(spans) - timed(nothing)) / repeats * 1e9


def timed(what: Any) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    what()
    return time.process_time() - start


def run(data: Any, profile: str | None) -> int:
    """Train the joint network and one specialised one; return the number of steps."""
    options: dict[str, Any] = {"epochs": EPOCHS, "num_groups": 1, "num_threads": 1, "device": "cpu", "progress": False}
    STGTrainer(mlp(64, (128, 128)), data.layout, profile=profile, **options).fit(data.train)
    return 2 * EPOCHS * -(-len(data.train) // 32)


def main() -> None:
    """Measure and write the figures."""
    items = iter([])
    assert each("data", items) is items, "an iterator that is not watched is itself"
    torch.set_num_threads(1)
    data = digits(seed=0)
    steps = run(data, None)
    with tempfile.TemporaryDirectory() as folder:
        run(data, folder)  # imports
        pairs = []
        for _ in range(ROUNDS):
            pairs.append((timed(lambda: run(data, None)), timed(lambda: run(data, folder))))
    offs = sorted(off_span_ns() for _ in range(ROUNDS))
    step = statistics.median(off for off, _ in pairs) / steps
    span_seconds = statistics.median(offs) * 1e-9
    found = {
        "torch": torch.__version__,
        "data": "digits",
        "rounds": ROUNDS,
        "steps": steps,
        "span_off_ns": statistics.median(offs),
        "spans_a_step": SPANS,
        "step_us": step * 1e6,
        "off_share_of_a_step": SPANS * span_seconds / step,
        "run_off_seconds": statistics.median(off for off, _ in pairs),
        "run_on_seconds": statistics.median(on for _, on in pairs),
        "on_over_off": statistics.median(on / off for off, on in pairs),
    }
    print(json.dumps(found, indent=1))
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
