"""Lightning: what a sampler repeats to fill up the last batches is not recorded."""

from __future__ import annotations

import pytest
import torch
from _lightning_runs import LAYOUT, THEIR_OWN_AFFAIRS, Mixed, Net, data, trainer
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from pymtg.data import with_ids
from pymtg.integrations.lightning import DataMapCallback
from pymtg.integrations.lightning._loaders import Padding

pytestmark = THEIR_OWN_AFFAIRS


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_what_a_distributed_sampler_repeats_is_left_out(size, ranks, batch, shuffle):
    dataset, seen = list(range(size)), []
    for rank in range(ranks):
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=shuffle, seed=3)
        loader, padding = DataLoader(dataset, batch, sampler=sampler), Padding()
        for _ in range(2):
            padding.begin(loader)
            for rows in loader:
                seen += rows[: padding.real_rows(len(rows))].tolist()
    assert sorted(seen) == sorted(dataset * 2)


class EverySecond(Mixed):
    """Records every second row, the last ones first, and nothing of one batch."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        logits = self.linear(inputs)
        if batch_idx == 1:
            return None
        for rows in (slice(4, None, 2), slice(0, 4, 2)):
            self.record(logits[rows], targets[rows], self._pymtg_ids[rows])
        return logits.square().sum()


class ReturnsEverySecond(Net):
    def training_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits = self.linear(inputs)
        if batch_idx == 1:
            return None
        return {"loss": logits.sum(), "logits": logits[::2], "targets": targets[::2], "sample_id": ids[::2]}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("module", [EverySecond, ReturnsEverySecond])
def test_copies_are_told_by_their_place_in_the_batch_where_a_step_records_some_rows(module):
    dataset, counts = with_ids(data(101)), 0
    for rank in range(2):
        sampler = DistributedSampler(dataset, 2, rank, shuffle=False)
        callback = DataMapCallback(LAYOUT)
        run = trainer(callback, max_epochs=1, limit_val_batches=0, use_distributed_sampler=False)
        run.fit(module(), DataLoader(dataset, batch_size=8, sampler=sampler))
        counts = counts + callback.data_map.count[:, 0]
    recorded = [at for at in range(101) if at // 2 % 8 % 2 == 0 and at // 2 // 8 != 1]
    assert counts.nonzero().flatten().tolist() == recorded
    assert counts.max() == 1


def test_rows_of_parts_that_are_real():
    padding = Padding()
    padding._real = 4
    assert padding.real_rows_of([[0, 1]], [0, 1, 2]) == [None]
    padding.rows_seen = 0
    assert padding.real_rows_of([], [7, 7]) == []
    assert padding.real_rows_of([[2, 1], [2, 3, 1]], [1, 2, 1, 3]) == [[0, 1], [0]]
    padding.rows_seen = 2
    assert padding.real_rows_of([[50, 51, 52, 53], [50]], [1, 2, 1, 3]) == [[0, 1], None]


class Weighted(DistributedSampler):
    """Draws three times as many samples as there are, none of them padding."""

    def __iter__(self):
        return iter([self.rank, *range(len(self.dataset))] * 3)

    def __len__(self):
        return 3 * (1 + len(self.dataset))


def test_all_that_a_sampler_draws_in_its_own_way_is_real():
    dataset = list(range(10))
    for loader in (
        DataLoader(dataset, 4, sampler=Weighted(dataset, 2, 1)),
        DataLoader(dataset, batch_sampler=BatchSampler(Weighted(dataset, 2, 1), 4, drop_last=False)),
    ):
        padding = Padding()
        padding.begin(loader)
        assert sum(padding.real_rows(len(rows)) for rows in loader) == 33


def test_what_lightnings_wrapper_of_a_sampler_repeats_is_left_out():
    dataset, seen = list(range(7)), []
    for rank in range(2):
        sampler = DistributedSamplerWrapper(RandomSampler(dataset, generator=torch.Generator()), 2, rank)
        loader, padding = DataLoader(dataset, 3, sampler=sampler), Padding()
        padding.begin(loader)
        for rows in loader:
            seen += rows[: padding.real_rows(len(rows))].tolist()
    assert sorted(seen) == dataset
