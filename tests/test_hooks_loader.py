"""Ids that the loader gives by itself: nested loops, batches of all kinds, samplers that repeat."""

from __future__ import annotations

import pickle
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from _hooked import BINARY, MIXED, ONE, M, assert_same_map, data, fused_map, losses_of, network
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pymtg
from pymtg.data import with_ids
from pymtg.errors import InvalidTypeError
from pymtg.hooks import RecordingError


def test_a_loader_that_gives_the_ids_by_itself():
    inputs, labels = data(BINARY)
    loss = nn.BCEWithLogitsLoss()
    recorder = pymtg.record(loss, BINARY, M)
    loader = recorder.batches(DataLoader(with_ids(TensorDataset(inputs, labels)), batch_size=6))
    assert len(loader) == 7
    assert loader.batch_size == 6

    def epoch():
        for x, y in loader:  # as if there were no ids
            loss(x[:, :4].requires_grad_(), y.float())

    with recorder:
        epoch()
        epoch()
    epoch()  # detached: the loop still runs
    batches = [(inputs[ids, :4], labels[ids], ids) for ids in torch.arange(M).split(6)]
    expected = fused_map(batches * 2, BINARY)
    assert_same_map(recorder.data_map, expected)
    assert pickle.loads(pickle.dumps(loader.dataset))[3][0] == 3


def test_a_model_whose_ids_come_from_the_loader():
    inputs, labels = data(ONE)
    model = network(ONE)
    recorder = pymtg.record(model, ONE, M)
    loader = recorder.batches(DataLoader(with_ids(TensorDataset(inputs, labels)), batch_size=6))
    with recorder:
        for x, y in loader:
            recorder.targets(y)
            model(x)
        with pytest.raises(RecordingError, match="no sample ids for these targets"):
            recorder.targets(y)
    assert recorder.data_map.count.unique().tolist() == [1]


def numbered(*ids):
    """Batches (ids, inputs, targets) whose inputs are the ids."""
    return [(torch.tensor(part), torch.tensor(part), torch.zeros(len(part), dtype=torch.long)) for part in ids]


def give(loss, rows):
    return loss(torch.zeros(rows, 3, requires_grad=True), torch.zeros(rows, dtype=torch.long))


@pytest.mark.parametrize("left", ["end", "break", "close"])
@pytest.mark.parametrize("used", [False, True])
def test_a_loop_inside_another_puts_the_outer_ids_back(left, used):
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 8) as recorder:
        for x, y in recorder.batches(numbered([0, 1], [2, 3])):
            inner = iter(recorder.batches(numbered([4, 5], [6, 7])))
            for _ in inner:
                if used:
                    give(loss, 2)
                if left != "end":
                    break
            if left == "close":
                inner.close()
            del inner
            give(loss, len(x))
            with pytest.raises(RecordingError, match="used by an earlier forward"):
                give(loss, len(y))
    second = 2 if used and left == "end" else 0
    assert recorder.data_map.count.flatten().tolist() == [1] * 4 + [2 * used] * 2 + [second] * 2


def test_a_task_seen_before_an_inner_loop_waits_for_the_others():
    losses = losses_of(MIXED)

    def call(*names):
        for name, classes in zip(MIXED.names, MIXED.num_classes, strict=True):
            if name in names:
                logits = torch.zeros(2, classes) if classes > 1 else torch.zeros(2)
                losses[name](logits.requires_grad_(), torch.zeros(2, dtype=torch.long if classes > 1 else torch.float))

    with pymtg.record(losses, MIXED, 4, missing=True) as recorder:
        for _ in recorder.batches(numbered([0, 1])):
            call("kind")
            for _ in recorder.batches(numbered([2, 3])):
                call("odd")
                break
            call("odd", "size")
    assert recorder.data_map.count.tolist() == [[1, 1, 1]] * 2 + [[0, 1, 0]] * 2


@pytest.mark.parametrize("batches", [1, 2])
def test_two_loops_that_take_turns_are_an_error(batches):
    loss = nn.CrossEntropyLoss()
    first, second = numbered(*[[0, 1]] * batches), numbered(*[[2, 3]] * batches)
    with pymtg.record(loss, ONE, 4) as recorder:
        pairs = zip(recorder.batches(first), recorder.batches(second), strict=False)
        with pytest.raises(RecordingError, match="cannot take turns"):
            [give(loss, 2) for _ in pairs]
        for _ in recorder.batches(first):
            give(loss, 2)
        assert recorder.data_map.count.flatten().tolist() == [batches, batches, 1, 1]


def test_a_loop_that_is_never_gone_on_with_is_in_nobodys_way():
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 4) as recorder:
        abandoned = iter(recorder.batches(numbered([0, 1], [0, 1])))
        next(abandoned)
        for _ in range(2):
            for _ in recorder.batches(numbered([2, 3], [2, 3])):
                give(loss, 2)
        next(iter(recorder.batches(numbered([2, 3]))))
        recorder.snapshot(1)
    assert recorder.data_map.count.flatten().tolist() == [0, 0, 4, 4]
    with recorder:
        next(iter(recorder.batches(numbered([0, 1]))))  # closed at once, and its ids stay
        give(loss, 2)
        next(abandoned)
        give(loss, 2)
    del abandoned
    assert recorder.data_map.count.flatten().tolist() == [2, 2, 4, 4]


class Encoding(UserDict):
    """A mapping with a method, like those of tokenizers."""

    def to(self, device):
        return device


class Sharing(UserDict):
    def __copy__(self):
        other = type(self)()
        other.data = self.data
        return other


class Stubborn(dict):
    def __delitem__(self, name):
        raise RuntimeError(name)

    __setitem__ = __delitem__


class Pair(NamedTuple):
    x: torch.Tensor
    y: int


@pytest.mark.parametrize(
    ("kind", "kept"),
    [(dict, dict), (OrderedDict, OrderedDict), (Encoding, Encoding), (Sharing, dict), (Stubborn, dict)],
)
def test_what_is_left_of_a_mapping_keeps_its_type(kind, kept):
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, 4)
    samples = [kind({"x": torch.ones(2), "y": 1}) for _ in range(4)]
    wrapped = with_ids(samples)
    for _ in range(2):
        assert type(wrapped[3]) is kept
        assert wrapped[3]["sample_id"] == 3
        assert "sample_id" not in samples[3]
    (batch,) = recorder.batches(DataLoader(wrapped, batch_size=4))
    assert type(batch) is kept
    assert set(batch) == {"x", "y"}
    given = [kind({"x": torch.ones(2), "sample_id": torch.tensor([1, 0])})]
    for _ in range(2):
        (batch,) = recorder.batches(given)
        assert type(batch) is kept
        assert list(batch) == ["x"]
    (batch,) = recorder.batches([MappingProxyType(dict(given[0]))])
    assert type(batch) is MappingProxyType
    assert list(batch) == ["x"]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_left_of_a_named_tuple_is_one(workers):
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, 4)
    wrapped = with_ids([Pair(torch.ones(2), at) for at in range(4)])
    assert wrapped[2][0] == wrapped[2].sample_id == wrapped[2].y == 2
    assert pickle.loads(pickle.dumps(wrapped[2])).y == 2
    (batch,) = recorder.batches(DataLoader(wrapped, batch_size=4, num_workers=workers))
    assert type(batch) is Pair
    assert batch.y.tolist() == [0, 1, 2, 3]
    named = namedtuple("named", ["x", "sample_id"])
    assert with_ids([named(5, 6)])[0] == (0, 5, 6)
    (batch,) = recorder.batches([named(torch.tensor([1]), torch.zeros(1))])
    assert type(batch) is tuple


class Weighted(DistributedSampler):
    """Draws with replacement, more than a share of the samples."""

    def __iter__(self):
        return iter(range(10)) if self.rank else iter([*range(10), *range(5)])

    def __len__(self):
        return 10 if self.rank else 15


@pytest.mark.parametrize("kind", [DistributedSampler, Weighted])
def test_only_what_torchs_sampler_repeats_is_left_out(kind):
    dataset = TensorDataset(torch.zeros(11), torch.zeros(11, dtype=torch.long))
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 11) as recorder:
        for rank in range(2):
            loader = DataLoader(with_ids(dataset), 4, sampler=kind(dataset, 2, rank, shuffle=False))
            for x, _ in recorder.batches(loader):
                give(loss, len(x))
    assert recorder.data_map.count.flatten().tolist() == (
        [1] * 11 if kind is DistributedSampler else [3] * 5 + [2] * 5 + [0]
    )


def test_a_loader_of_dicts_and_one_without_ids():
    samples = [{"x": torch.zeros(2), "y": 1} for _ in range(4)]
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, M)
    (batch,) = recorder.batches(DataLoader(with_ids(samples), batch_size=4))
    assert set(batch) == {"x", "y"}
    for loader in ([(torch.zeros(4, 2), torch.zeros(4))], [{"x": torch.zeros(2)}], [torch.zeros(3)], [(1, 2)]):
        with pytest.raises(InvalidTypeError, match="loader must yield sample ids first"):
            list(recorder.batches(loader))
