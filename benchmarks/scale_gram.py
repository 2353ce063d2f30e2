"""How much memory grouping takes by where snapshots go, by the number of samples M and of snapshots E.

``python benchmarks/scale_gram.py`` writes ``results/scale_gram.json``. Each point is a process of its own: it records a
map of T tasks, and then measures how far E snapshots, the Gram matrix and its clustering raise the resident set above
where it stood with the map. All kinds must find the same groups, and Gram matrices equal to 1e-9.
"""

from __future__ import annotations

import hashlib
import json
import sys

from _fresh import in_fresh_process, measured, save, status_mb

TASKS = 200
KINDS = ("gram", "disk", "memory")
BY_SAMPLES = [(m, 4) for m in (5_000, 20_000, 80_000, 160_000)]
BY_SNAPSHOTS = [(20_000, e) for e in (1, 16, 64)]  # and 4, which stands above


def one(point: dict) -> dict:
    """Measure one point, in this process."""
    import torch

    from pymtg import DataMap, TaskLayout, cluster_tasks

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    samples, tasks = point["samples"], point["tasks"]
    data_map = DataMap(samples, TaskLayout.binary([f"t{t}" for t in range(tasks)]), snapshots=point["snapshots"])

    def record(start: int, stop: int) -> None:
        pattern = torch.rand(stop - start, 10, generator=generator)[:, torch.arange(tasks) % 10]
        p = (pattern + torch.rand(stop - start, tasks, generator=generator)) / 2
        data_map.update(p, torch.arange(start, stop))

    for start in range(0, samples, 1000):
        record(start, min(start + 1000, samples))
    cluster_tasks(torch.eye(5, dtype=torch.float64), 2, random_state=0)  # libraries are loaded
    with_map = status_mb("VmRSS")

    def group() -> list[int]:
        for epoch in range(point["epochs"]):
            record(0, 1000)
            data_map.snapshot(epoch)
        return cluster_tasks(data_map, 10, random_state=0).labels.tolist()

    labels, figures = measured(group)
    gram = data_map.gram()
    return figures | {
        "map_mb": data_map.nbytes / 1e6,
        "resident_with_map_mb": with_map,
        "labels": hashlib.sha256(bytes(labels)).hexdigest()[:16],
        "gram_trace": float(gram.trace()),
        "gram_norm": float(gram.norm()),
    }


def main() -> None:
    """Measure every point."""
    if len(sys.argv) > 1:
        print(json.dumps(one(json.loads(sys.argv[1]))))
        return
    points = []
    for samples, epochs in BY_SAMPLES + BY_SNAPSHOTS:
        same = [
            in_fresh_process(__file__, {"snapshots": kind, "tasks": TASKS, "samples": samples, "epochs": epochs})
            for kind in KINDS
        ]
        for other in same[1:]:
            assert other["labels"] == same[0]["labels"]
            for figure in ("gram_trace", "gram_norm"):
                assert abs(other[figure] - same[0][figure]) <= 1e-9 * abs(same[0][figure])
        points += same
    save("scale_gram", "memory of snapshots, the Gram matrix and its clustering, above that of the map", points)


if __name__ == "__main__":
    main()
