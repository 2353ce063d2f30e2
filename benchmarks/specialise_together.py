"""The specialised networks of STG trained together against one by one: processor time and memory.

``python benchmarks/specialise_together.py``. A case trains K networks for two epochs from the start to the results, in
both forms in turn, round after round, in one process; the ratio is the median of the rounds'. That both end with the
same histories and weights is asserted first, in float64: what rounding does to float32 grows with every step. Memory is
what such a training adds to the resident set of a process of its own. Data are drawn, in the sizes of the sets named.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = int(os.environ.get("PYMTG_BENCH_ROUNDS", "9"))

# network: "mlp" with widths or "convnet" with channels; inputs: features, or channels and side of the images
CASES: list[dict[str, Any]] = [
    {"case": "small", "inputs": [64], "mlp": [128, 128], "tasks": 9, "rows": 1200, "networks": 3, "batch": 32},
    {"case": "small", "inputs": [64], "mlp": [128, 128], "tasks": 9, "rows": 1200, "networks": 3, "batch": 256},
    {"case": "small", "inputs": [64], "mlp": [128, 128], "tasks": 9, "rows": 1200, "networks": 5, "batch": 32},
    {"case": "small", "inputs": [64], "mlp": [128, 128], "tasks": 9, "rows": 1200, "networks": 5, "batch": 256},
    {"case": "small", "inputs": [64], "mlp": [128, 128], "tasks": 9, "rows": 600, "networks": 20, "batch": 32},
    {"case": "yeast", "inputs": [103], "mlp": [128, 128], "tasks": 14, "rows": 1500, "networks": 3, "batch": 32},
    {"case": "bibtex", "inputs": [1836], "mlp": [128, 128], "tasks": 159, "rows": 1600, "networks": 5, "batch": 32},
    {"case": "bibtex", "inputs": [1836], "mlp": [128, 128], "tasks": 159, "rows": 2400, "networks": 5, "batch": 128},
    {"case": "delicious", "inputs": [500], "mlp": [128, 128], "tasks": 983, "rows": 1600, "networks": 5, "batch": 128},
    {"case": "wide", "inputs": [64], "mlp": [512, 512], "tasks": 9, "rows": 800, "networks": 3, "batch": 32},
    {"case": "wide", "inputs": [64], "mlp": [512, 512], "tasks": 9, "rows": 1600, "networks": 3, "batch": 256},
    {"case": "wider", "inputs": [1836], "mlp": [1024], "tasks": 9, "rows": 320, "networks": 3, "batch": 32},
    {"case": "images", "inputs": [1, 8], "convnet": [16, 32], "tasks": 9, "rows": 600, "networks": 3, "batch": 32},
    {"case": "images", "inputs": [1, 8], "convnet": [16, 32], "tasks": 9, "rows": 1200, "networks": 3, "batch": 256},
    {"case": "images", "inputs": [1, 8], "convnet": [32, 64], "tasks": 9, "rows": 600, "networks": 3, "batch": 32},
    {"case": "images", "inputs": [3, 32], "convnet": [16, 32, 64], "tasks": 9, "rows": 160, "networks": 3, "batch": 32},
    {"case": "images", "inputs": [3, 32], "convnet": [32, 64, 128], "tasks": 9, "rows": 96, "networks": 3, "batch": 32},
]
FORMS = ("one by one", "together")


class Training:
    """A case's networks, data and weights; a call trains them in one of the two forms."""

    def __init__(self, case: dict[str, Any], double: bool = False) -> None:
        import numpy as np
        import torch

        from pymtg import TaskLayout
        from pymtg.data import ArrayTasks
        from pymtg.nets import convnet, mlp
        from pymtg.trainers import TrainConfig
        from pymtg.trainers._progress import Reporter
        from pymtg.trainers._stages import Setting

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        sizes = case["inputs"]
        shape = sizes if len(sizes) == 1 else [sizes[0], sizes[1], sizes[1]]
        layout = TaskLayout.binary([f"t{t}" for t in range(case["tasks"])])
        inputs = torch.randn(case["rows"], *shape, generator=generator)
        targets = torch.randint(0, 2, (case["rows"], case["tasks"]), generator=generator)
        net = mlp(sizes[0], case["mlp"]) if "mlp" in case else convnet(sizes[0], case["convnet"])
        config = TrainConfig(epochs=2, batch_size=case["batch"], device="cpu")
        data = ArrayTasks(inputs.double() if double else inputs, targets, layout)
        self.model = (lambda layout: net(layout).double()) if double else net
        self.setting = Setting.of(self.model, layout, config, 0, data, None, Reporter())
        rng = np.random.default_rng(0)
        self.weights = rng.dirichlet(np.full(case["networks"], 0.3), case["tasks"])

    def __call__(self, form: str) -> list[Any]:
        from pymtg.trainers._together import train_together

        if form == "together":
            return train_together(self.setting, self.weights, epochs=2)
        return [self.setting.specialised(k, u, epochs=2) for k, u in enumerate(self.weights.T)]

    def check(self) -> None:
        import torch

        for one, other in zip(self("one by one"), self("together"), strict=True):
            mine, theirs = other.network.state_dict(), one.network.state_dict()
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
            for a, b in zip(one.stage.history, other.stage.history, strict=True):
                torch.testing.assert_close(torch.tensor(b.task_losses), torch.tensor(a.task_losses), rtol=1e-5, atol=0)


def time_forms(case: dict[str, Any]) -> dict[str, Any]:
    """Time both forms in turn; the answers are compared first."""
    from pymtg.trainers._together import pays_together

    Training(case, double=True).check()
    training = Training(case)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(ROUNDS):
        for form in FORMS:
            start = time.process_time()
            training(form)
            seconds[form].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds["one by one"], seconds["together"], strict=True)]
    steps = 2 * -(-case["rows"] // case["batch"])
    return {
        "ms_a_step": {form: 1e3 * statistics.median(found) / steps for form, found in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "auto": "together"
        if pays_together(training.setting, training.model(training.setting.layout))
        else "one by one",
    }


def main() -> None:
    from _fresh import in_fresh_process, save

    points = []
    for case in CASES:
        point = in_fresh_process(__file__, case)
        peaks = {form: in_fresh_process(__file__, case | {"peak": form})["rise_mb"] for form in FORMS}
        points.append(point | {"peak_mb": peaks})
    save("together", "K specialised networks trained together against one by one, two epochs", points)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        given = json.loads(sys.argv[1])
        if "peak" in given:
            from _fresh import measured

            training = Training(given)
            warm = Training(given | {"rows": given["batch"], "networks": 2})
            warm(given["peak"])  # what torch allocates once is no part of it
            print(json.dumps({"rise_mb": measured(lambda: training(given["peak"]))[1]["rise_mb"]}))
        else:
            print(json.dumps(time_forms(given)))
