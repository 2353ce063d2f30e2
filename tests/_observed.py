"""What a training showed a data map, batch by batch, and the map of these batches: the oracle of integrations."""

from __future__ import annotations

import torch
from torch import Tensor

from pymtg import DataMap, TaskLayout
from pymtg.functional import multitask_cross_entropy


class Observed:
    """The logits, targets and ids of every training step, noted by the training itself."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(self, logits: Tensor, targets: Tensor, ids: Tensor) -> None:
        self.batches.append((logits.detach().clone(), targets.clone(), ids.clone()))

    def map(self, layout: TaskLayout, num_samples: int, **options) -> DataMap:
        """Return the map of all batches, in their order."""
        data_map = DataMap(num_samples, layout, **options)
        for logits, targets, ids in self.batches:
            labels = torch.where(targets.isnan(), -100, targets).long() if targets.is_floating_point() else targets
            labels = labels[:, None] if labels.dim() == 1 else labels
            multitask_cross_entropy(logits, labels, layout, data_map=data_map, sample_ids=ids)
        return data_map


def assert_same_map(found: DataMap | None, expected: DataMap) -> None:
    """Assert that two maps are the same bit for bit, snapshots included where the second has some."""
    assert found is not None
    assert found.layout == expected.layout
    for name, tensor in expected.state._asdict().items():
        assert torch.equal(getattr(found.state, name), tensor), name
    if expected.snapshot_epochs:
        assert found.snapshot_epochs == expected.snapshot_epochs
        for mine, theirs in zip(found.snapshots, expected.snapshots, strict=True):
            assert torch.equal(mine.words, theirs.words)
            assert torch.equal(mine.counts, theirs.counts)
