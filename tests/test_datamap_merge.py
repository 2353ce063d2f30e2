"""Merging, snapshots and features: properties that hold for any data."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pymtg import DataMap, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError

NAMES = ["a", "b", "c"]
LAYOUT = TaskLayout.binary(NAMES)
SAMPLES = 4

probability = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 0.5, 1e-9]))
entry = st.tuples(probability, st.booleans(), st.booleans())  # with: is it there, is it right
rows = st.lists(st.tuples(st.integers(0, SAMPLES - 1), st.lists(entry, min_size=3, max_size=3)), max_size=12)
Rows = list[tuple[int, list[tuple[float, bool, bool]]]]


def new_map(data: Rows, *, missing: bool, layout: TaskLayout = LAYOUT, order: tuple[int, ...] = (0, 1, 2)) -> DataMap:
    data_map = DataMap(SAMPLES, layout, missing=missing)
    record(data_map, data, order)
    return data_map


def record(data_map: DataMap, data: Rows, order: tuple[int, ...] = (0, 1, 2)) -> None:
    if not data:
        return
    entries = torch.tensor([[row[t] for t in order] for _, row in data])
    valid = entries[..., 1] > 0 if data_map.missing else None
    ids = torch.tensor([sample for sample, _ in data])
    data_map.update(entries[..., 0], ids, correct=entries[..., 2] > 0, valid=valid)


def assert_close(a: DataMap, b: DataMap) -> None:
    assert torch.equal(a.count, b.count)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.std, b.std, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.correctness, b.correctness, rtol=0, atol=1e-6)


@given(first=rows, second=rows, third=rows, missing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_merge(first: Rows, second: Rows, third: Rows, missing: bool) -> None:
    """In any order and grouping it is the map of the union."""
    a, b, c = (new_map(data, missing=missing) for data in (first, second, third))
    union = new_map(first + second + third, missing=missing)
    left = copy.deepcopy(a).merge_(b).merge_(c)
    right = copy.deepcopy(c).merge_(copy.deepcopy(b).merge_(a))
    for merged in (left, right):
        assert_close(merged, union)
    nothing = DataMap(SAMPLES, LAYOUT, missing=missing)
    assert_close(copy.deepcopy(a).merge_(nothing), a)
    assert_close(nothing.merge_(a), a)


@given(data=rows, cut=st.integers(0, 12), missing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_split_into_batches(data: Rows, cut: int, missing: bool) -> None:
    split = new_map(data[:cut], missing=missing)
    record(split, data[cut:])
    assert torch.equal(split.state.words, new_map(data, missing=missing).state.words)


@given(data=rows, order=st.permutations(range(3)), missing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_permuted_tasks_permute_the_map(data: Rows, order: list[int], missing: bool) -> None:
    plain = new_map(data, missing=missing)
    permuted = new_map(data, missing=missing, layout=LAYOUT.select(order), order=tuple(order))
    assert torch.equal(permuted.state.words, plain.state.words[..., order])
    assert torch.equal(permuted.count, plain.count[:, order])
    gram = plain.gram()
    torch.testing.assert_close(permuted.gram(), gram[order][:, order], rtol=1e-9, atol=1e-9)


@given(data=rows)
@settings(max_examples=60, deadline=None)
def test_bounds(data: Rows) -> None:
    data_map = new_map(data, missing=True)
    assert bool(((data_map.mean >= 0) & (data_map.mean <= 1)).all())
    assert bool(((data_map.std >= 0) & (data_map.std <= 0.5 + 1e-6)).all())
    assert bool(((data_map.correctness >= 0) & (data_map.correctness <= 1)).all())
    assert not data_map.std[data_map.count < 2].any()


def test_merge_with_itself_doubles(generator: torch.Generator) -> None:
    for missing in (False, True):
        data_map = DataMap(4, LAYOUT, missing=missing)
        data_map.update(torch.rand(9, 3, generator=generator), torch.arange(9) % 4)
        before = copy.deepcopy(data_map)
        assert data_map.merge_(data_map) is data_map
        assert torch.equal(data_map.count, 2 * before.count)
        torch.testing.assert_close(data_map.mean, before.mean)
        torch.testing.assert_close(data_map.std, before.std, rtol=1e-6, atol=1e-7)


def test_merge_adds_rejected_and_clamps(generator: torch.Generator) -> None:
    a, b = DataMap(2, LAYOUT, missing=True), DataMap(2, LAYOUT, missing=True)
    for data_map in (a, b):
        data_map.update(torch.full((1, 3), torch.nan), torch.tensor([0]))
        data_map.update(torch.full((1, 3), 0.5), torch.tensor([1]))
        data_map.state.counts[1] = 30_000
    a.merge_(b)
    assert a.num_rejected == 2
    assert a.count[1].tolist() == [32767] * 3


def test_merge_past_4095_keeps_the_share() -> None:
    maps = []
    for p in (0.75, 0.25):
        maps.append(DataMap(1, LAYOUT))
        maps[-1].update(torch.full((4000, 3), p), torch.zeros(4000, dtype=torch.int32))
    merged = maps[0].merge_(maps[1])
    torch.testing.assert_close(merged.correctness, torch.full((1, 3), 0.5), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (DataMap(3, LAYOUT), InvalidArgumentError, "other must have this map's num_samples; got 3, this map has 4"),
        (DataMap(4, LAYOUT, missing=True), InvalidArgumentError, "other must have this map's missing; got True"),
        (DataMap(4, TaskLayout.binary(["a", "b", "d"])), InvalidArgumentError, "other must have this map's layout"),
        ("map", InvalidTypeError, "other must be a DataMap; got str"),
    ],
)
def test_merge_refuses(other: DataMap, error: type[Exception], message: str) -> None:
    data_map = new_map([(0, [(0.5, True, True)] * 3)], missing=False)
    before = copy.deepcopy(data_map)
    with pytest.raises(error, match=message):
        data_map.merge_(other)
    assert all(torch.equal(a, b) for a, b in zip(data_map.state, before.state, strict=True))


def features_of(data_map: DataMap) -> Tensor:
    return torch.stack([data_map.mean, data_map.std])


def test_snapshots_are_cumulative(generator: torch.Generator) -> None:
    data_map, seen = DataMap(4, LAYOUT), []
    for epoch in (0, 3, 4):
        data_map.update(torch.rand(9, 3, generator=generator), torch.arange(9) % 4)
        taken = data_map.snapshot(epoch)
        assert taken is data_map.snapshots[-1]
        seen.append((epoch, features_of(data_map), data_map.count, data_map.correctness))
    data_map.update(torch.rand(9, 3, generator=generator), torch.arange(9) % 4)
    for snapshot, (epoch, features, count, correctness) in zip(data_map.snapshots, seen, strict=True):
        assert snapshot.epoch == epoch
        assert torch.equal(torch.stack([snapshot.mean, snapshot.std]), features)
        assert torch.equal(snapshot.count, count)
        assert torch.equal(snapshot.correctness, correctness)
    assert not torch.equal(data_map.count, seen[-1][2])


@pytest.mark.parametrize("epoch", [3, 2, -1])
def test_snapshots_go_forward(epoch: int) -> None:
    data_map = DataMap(1, LAYOUT)
    data_map.snapshot(3)
    with pytest.raises(InvalidArgumentError, match=rf"epoch must be later than the last snapshot's \(3\); got {epoch}"):
        data_map.snapshot(epoch)
    for wrong in (4.0, True, "4", None):
        with pytest.raises(InvalidTypeError, match="epoch must be an integer"):
            data_map.snapshot(wrong)
    assert [s.epoch for s in data_map.snapshots] == [3]


def test_reset(generator: torch.Generator) -> None:
    data_map = DataMap(4, LAYOUT)
    data_map.update(torch.rand(9, 3, generator=generator), torch.arange(9) % 4)
    data_map.update(torch.full((1, 3), torch.nan), torch.tensor([0]))
    data_map.snapshot(1)
    data_map.reset()
    assert not any(tensor.any() for tensor in data_map.state)
    assert data_map.snapshots == ()
    assert data_map.num_rejected == 0


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("snapshots", [0, 1, 3])
def test_features_and_gram(missing: bool, snapshots: int, generator: torch.Generator) -> None:
    """Enough samples for several slabs; the Gram matrix is that of the centred features."""
    samples = 5000
    data_map = DataMap(samples, LAYOUT, missing=missing, ddof=1)
    for epoch in range(max(snapshots, 1)):
        p, ids = torch.rand(7000, 3, generator=generator), torch.randint(samples, (7000,), generator=generator)
        valid = torch.rand(7000, 3, generator=generator) < 0.8 if missing else None
        data_map.update(p, ids, valid=valid)
        if snapshots:
            data_map.snapshot(epoch)
    features = data_map.features()
    assert features.shape == (3, 2 * samples * max(snapshots, 1))
    assert features.dtype == torch.float32
    assert bool(torch.isfinite(features).all())
    kept = data_map.snapshots or [data_map]
    for values in (kept[-1].mean, kept[-1].std):  # every observed number is in it, as it is
        observed = values[kept[-1].count[:, 0] > 0, 0]
        assert bool(torch.isin(observed, features[0]).all())
    centred = (features.double() - features.double().mean(0)).double()
    gram = data_map.gram()
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, centred @ centred.T, rtol=1e-6, atol=1e-6)


def test_unobserved_tasks_take_the_average() -> None:
    data_map = DataMap(2, LAYOUT, missing=True)
    valid = torch.tensor([[True, True, False]])
    data_map.update(torch.tensor([[0.25, 0.75, 0.0]]), torch.tensor([0]), valid=valid)
    assert data_map.mean.tolist() == [[0.25, 0.75, 0], [0, 0, 0]]
    means = data_map.features()[:, :2]
    assert means.tolist() == [[0.25, 0], [0.75, 0], [0.5, 0]]
