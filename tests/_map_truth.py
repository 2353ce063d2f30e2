"""A data map kept as the definition has it: the list of every probability, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class ListOfProbabilities:
    """Per (sample, task) every recorded gold probability and whether the prediction was right."""

    def __init__(self, num_samples: int, num_tasks: int) -> None:
        self.seen: list[list[list[tuple[float, bool]]]] = [[[] for _ in range(num_tasks)] for _ in range(num_samples)]

    def record(self, gold: Tensor, right: Tensor, valid: Tensor, ids: Tensor) -> None:
        rows = zip(gold.tolist(), right.tolist(), valid.tolist(), ids.tolist(), strict=True)
        for probabilities, hits, there, sample in rows:
            for t, entry in enumerate(zip(probabilities, hits, there, strict=True)):
                if entry[2]:
                    self.seen[sample][t].append(entry[:2])

    def _each(self, function) -> Tensor:
        return torch.tensor([[function(entries) for entries in row] for row in self.seen], dtype=torch.float64)

    def mean(self) -> Tensor:
        return self._each(lambda entries: sum(p for p, _ in entries) / max(len(entries), 1))

    def count(self) -> Tensor:
        return self._each(len).int()

    def correctness(self) -> Tensor:
        return self._each(lambda entries: sum(right for _, right in entries) / max(len(entries), 1))

    def std(self, ddof: int) -> Tensor:
        def deviation(entries: list[tuple[float, bool]]) -> float:
            if len(entries) <= ddof:
                return 0.0
            mean = sum(p for p, _ in entries) / len(entries)
            return (sum((p - mean) ** 2 for p, _ in entries) / (len(entries) - ddof)) ** 0.5

        return self._each(deviation)
