"""The K specialised networks of STG on two ranks: each whole on one of them, or on both under DistributedDataParallel.

``python benchmarks/specialise_ranks.py`` trains four networks on digits in every form, in turn, round after round, on
two processes of one thread each (gloo, one machine), and writes ``results/specialise_ranks.json``: wall seconds from
the initial weights to all networks on every rank.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _fresh import save

from pymtg._ranks import Ranks
from pymtg.data import digits
from pymtg.nets import mlp
from pymtg.trainers import TrainConfig
from pymtg.trainers._progress import Reporter
from pymtg.trainers._spread import train_spread
from pymtg.trainers._stages import Setting
from pymtg.trainers._together import train_together

NETWORKS, RANKS, ROUNDS = 4, 2, 5
SIZES = [((128, 128), 32), ((128, 128), 256), ((512, 512), 128), ((1024, 1024), 256)]


def forms(hidden: tuple[int, ...], batch: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; of the first two only rank 0 does anything."""
    data = digits(seed=0)
    config = TrainConfig(epochs=1, batch_size=batch, num_threads=1, device="cpu")
    shares = np.eye(NETWORKS)[np.arange(data.num_tasks) % NETWORKS]
    ranks = Ranks.here()
    assert ranks is not None

    def setting(at_work: Ranks | None) -> Setting:
        return Setting.of(mlp(data.num_features, hidden), data.layout, config, 0, data.train, None, Reporter(), at_work)

    def one_by_one(at_work: Ranks | None) -> object:
        own = setting(at_work)
        return [own.specialised(k, shares[:, k], epochs=1) for k in range(NETWORKS)]

    def on_first(call: Callable[[], object]) -> object:
        return call() if ranks.leads else None

    return {
        "one process, one by one": lambda: on_first(lambda: one_by_one(None)),
        "one process, together": lambda: on_first(lambda: train_together(setting(None), shares, epochs=1)),
        "two ranks, one by one": lambda: one_by_one(ranks),
        "two ranks, together": lambda: train_together(setting(ranks), shares, epochs=1),
        "two ranks, spread": lambda: train_spread(setting(ranks), shares, epochs=1, start=None),
        "two ranks, spread, together": lambda: train_spread(
            setting(ranks), shares, epochs=1, start=None, together=True
        ),
    }


def timed(call: Callable[[], object]) -> float:
    """Return the seconds until both ranks are done."""
    dist.barrier()
    start = time.perf_counter()
    call()
    dist.barrier()
    return time.perf_counter() - start


def rank(number: int, meeting: str, out: str) -> None:
    """Measure, as one of the ranks; rank 0 writes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=RANKS)
    points = []
    for hidden, batch in SIZES:
        calls = forms(hidden, batch)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(ROUNDS + 1):  # the first warms up
            for name, call in calls.items():
                spent = timed(call)
                if turn:
                    seconds[name].append(spent)
        alone = seconds["one process, one by one"]
        ratios = {
            name: statistics.median(a / b for a, b in zip(alone, own, strict=True)) for name, own in seconds.items()
        }
        medians = {name: statistics.median(own) for name, own in seconds.items()}
        load = os.getloadavg()[0]
        points.append({"hidden": hidden, "batch": batch, "seconds": medians, "speedup": ratios, "load_average": load})
        if number == 0:
            print(json.dumps(points[-1]), flush=True)
    Path(f"{out}-{number}").write_text(json.dumps(points))
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks and keep what they found."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/points"
        words = [sys.executable, __file__]
        ranks = [subprocess.Popen([*words, str(number), f"{folder}/meeting", out]) for number in range(RANKS)]
        assert [process.wait() for process in ranks] == [0] * RANKS
        points = json.loads(Path(f"{out}-0").read_text())
    save("specialise_ranks", "four specialised networks on two ranks", points, networks=NETWORKS, rounds=ROUNDS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rank(int(sys.argv[1]), *sys.argv[2:])
    else:
        main()
