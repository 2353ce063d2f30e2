"""Sample ids around every kind of map-style dataset."""

import copy
import pickle

import numpy as np
import pytest
import torch
from _settings import new_seed
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pymtg.data import collate, from_arrays, with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError


@pytest.fixture
def rng():
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


class Dicts(Dataset):
    classes = ("cat", "dog")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "y": index % 2}


class ListBatches(Dicts):
    def __getitems__(self, indices):
        return [(torch.tensor(float(i)), i) for i in indices]


class BatchedColumns(Dicts):
    def __getitems__(self, indices):
        return torch.zeros(len(indices)), torch.zeros(len(indices))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(0, 1)])


def arrays(samples=20):
    inputs = np.arange(samples, dtype=np.float32)[:, None]
    return from_arrays(inputs, (np.arange(samples)[:, None] % 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate_fn", [collate, None])
@pytest.mark.parametrize("kind", ["arrays", "subset", "concat", "tensors", "list"])
def test_ids_are_positions_in_the_wrapped_dataset(kind, collate_fn, workers):
    base = arrays()
    part = list(range(1, 20, 3))
    dataset = {
        "arrays": base,
        "subset": Subset(base, part),
        "concat": ConcatDataset([base, base]),
        "tensors": TensorDataset(base.inputs, base.targets),
        "list": [base[i] for i in range(20)],
    }[kind]
    values = {"subset": [float(i) for i in part], "concat": [*range(20), *range(20)]}.get(kind, list(range(20)))
    wrapped = with_ids(dataset)
    assert len(wrapped) == len(values)
    loader = DataLoader(wrapped, batch_size=6, shuffle=True, collate_fn=collate_fn, num_workers=workers)
    seen = []
    for ids, inputs, targets in loader:
        assert ids.dtype == torch.int64
        assert inputs[:, 0].tolist() == [values[i] for i in ids]
        assert targets[:, 0].tolist() == [int(values[i]) % 2 for i in ids]
        seen += ids.tolist()
    assert sorted(seen) == list(range(len(values)))


def test_subset_of_the_wrapped_keeps_the_whole_sets_positions():
    loader = DataLoader(Subset(with_ids(arrays()), [7, 3, 12]), batch_size=3, collate_fn=collate)
    ids, inputs, _ = next(iter(loader))
    assert ids.tolist() == inputs[:, 0].tolist() == [7, 3, 12]


def test_dict_items_get_a_key():
    wrapped = with_ids(Dicts())
    assert wrapped[4]["sample_id"] == 4
    batch = next(iter(DataLoader(wrapped, batch_size=6)))
    assert batch["sample_id"].tolist() == batch["x"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert "sample_id" not in Dicts()[4]


def test_a_dataset_with_its_own_getitems():
    ids, x, y = next(iter(DataLoader(with_ids(ListBatches()), batch_size=4)))
    assert ids.tolist() == x.tolist() == y.tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidTypeError, match="one sample per index"):
        with_ids(BatchedColumns()).__getitems__([0, 1, 2])


def test_longer_tuples_lists_and_iteration():
    wrapped = with_ids([("x", 0, "weight"), ["y", 1]])
    assert list(wrapped) == [(0, "x", 0, "weight"), (1, "y", 1)]


def test_negative_and_foreign_index_types(rng):
    wrapped = with_ids(arrays())
    at = int(rng.integers(20))
    for index in (at, at - 20, np.int64(at), torch.tensor(at)):
        assert wrapped[index][0] == at
        assert type(wrapped[index][0]) is int
    assert wrapped.__getitems__([-1, 0]).columns[0].tolist() == [19, 0]
    for index in (20, -21):
        with pytest.raises(IndexError, match=r"-20\.\.19"):
            wrapped[index]
        with pytest.raises(IndexError):
            wrapped.__getitems__([0, index])
    for index in (1.0, "1", slice(2), None):
        with pytest.raises(InvalidTypeError, match="index must be an integer"):
            wrapped[index]


def test_attributes_pass_through_and_copies_work():
    wrapped = with_ids(Dicts())
    assert wrapped.classes == ("cat", "dog")
    assert not hasattr(wrapped, "nothing_of_the_kind")
    for clone in (pickle.loads(pickle.dumps(wrapped)), copy.deepcopy(wrapped), copy.copy(wrapped)):
        assert clone[3]["sample_id"] == 3
        assert clone.classes == ("cat", "dog")
    assert with_ids(wrapped) is wrapped
    assert repr(with_ids([(1, 2)])) == "with_ids([(1, 2)])"


@pytest.mark.parametrize(
    "dataset", [Stream(), iter([(1, 2)]), 3, None, "text", {"train": []}, ((i, i) for i in range(2))]
)
def test_what_cannot_be_read_by_position_is_refused(dataset):
    with pytest.raises(InvalidTypeError, match="dataset must be a map-style dataset"):
        with_ids(dataset)


def test_iterable_dataset_is_named():
    with pytest.raises(InvalidTypeError, match="Stream is an IterableDataset"):
        with_ids(Stream())


def test_items_without_a_place_for_an_id():
    with pytest.raises(InvalidTypeError, match="sample 1 is of type Tensor"):
        with_ids([(1, 2), torch.zeros(2)])[1]
    with pytest.raises(InvalidArgumentError, match="'sample_id' itself"):
        with_ids([{"sample_id": 3}])[0]
