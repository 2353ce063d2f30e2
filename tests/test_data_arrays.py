"""In-memory datasets, their batches, and the bundle of parts."""

import pickle

import numpy as np
import pytest
import torch
from _settings import new_seed
from torch.utils.data import DataLoader, Subset

from pymtg import TaskLayout
from pymtg.data import IGNORE_INDEX, ArrayTasks, Batch, TaskData, collate, from_arrays, load
from pymtg.data.arrays import known_targets
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import score


@pytest.fixture
def rng():
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return np.random.default_rng(seed)


def some(rng, samples=23, features=5, classes=(1, 3, 2)):
    layout = TaskLayout([f"t{t}" for t in range(len(classes))], classes)
    targets = np.stack([rng.integers(max(c, 2), size=samples) for c in classes], axis=1)
    return from_arrays(rng.normal(size=(samples, features)), targets, layout)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.bool_, np.float32, np.float64])
def test_numpy_and_torch_give_the_same(rng, dtype):
    inputs, targets = rng.normal(size=(11, 4)), rng.integers(2, size=(11, 3)).astype(dtype)
    ours, theirs = from_arrays(inputs, targets), from_arrays(torch.tensor(inputs), torch.tensor(targets))
    assert ours.inputs.dtype == torch.float32
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.targets, theirs.targets)
    assert ours.targets.dtype == theirs.targets.dtype
    kept = {np.uint8: torch.uint8, np.int32: torch.int32}
    assert ours.targets.dtype == kept.get(dtype, torch.int64)
    np.testing.assert_array_equal(ours.targets, targets)
    assert ours.layout == theirs.layout == TaskLayout.binary(["task0", "task1", "task2"])


def test_missing_labels_as_nan_or_as_ignore_index(rng):
    targets = rng.integers(2, size=(30, 4)).astype(float)
    targets[0], targets[1] = 0, 1
    hole = rng.random((30, 4)) < 0.3
    hole[:2] = False
    with_nan = from_arrays(np.zeros((30, 1)), np.where(hole, np.nan, targets))
    with_number = from_arrays(np.zeros((30, 1)), np.where(hole, IGNORE_INDEX, targets).astype(np.int32))
    assert torch.equal(with_nan.targets, with_number.targets.long())
    assert (with_nan.targets.numpy() == IGNORE_INDEX).sum() == hole.sum()


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "?"])
def test_masked_labels_are_missing_ones(rng, dtype):
    targets, mask = rng.integers(0, 2, (50, 3)), rng.random((50, 3)) < 0.4
    inputs = rng.normal(size=(50, 2))
    data = from_arrays(inputs, np.ma.masked_array(targets.astype(dtype), mask=mask))
    assert torch.equal(data.targets, torch.from_numpy(np.where(mask, -100, targets)))
    assert from_arrays(np.ma.masked_array(inputs), np.ma.masked_array(targets)).targets.min() == 0
    with pytest.raises(InvalidArgumentError, match="inputs must not be masked; sample 7 is, in part"):
        from_arrays(np.ma.masked_array(inputs, mask=np.arange(100).reshape(50, 2) == 15), targets)


def test_a_data_frame_with_na(rng):
    pandas = pytest.importorskip("pandas")
    targets = pandas.DataFrame(rng.integers(0, 2, (20, 2)), columns=["a", "b"]).astype("Int64")
    targets.iloc[3, 1] = pandas.NA
    data = from_arrays(rng.normal(size=(20, 2)), targets)
    assert (data.targets == -100).nonzero().tolist() == [[3, 1]]
    with pytest.raises(InvalidTypeError, match="targets must hold numbers"):
        from_arrays(rng.normal(size=(20, 2)), targets.astype(str))


def test_a_data_frame_with_the_tasks_in_another_order(rng):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rng.integers(0, 2, (20, 3)), columns=["a", "b", "c"])
    layout = TaskLayout.from_targets(frame)
    said = (
        "targets must have the tasks as columns in the order of the layout; column 1 is 'c', where the layout has 'b'"
    )
    with pytest.raises(InvalidArgumentError, match=said):
        from_arrays(np.zeros((20, 1)), frame[["a", "c", "b"]], layout)
    with pytest.raises(InvalidArgumentError, match=said):
        score(np.full((20, 3), 0.5), frame[["a", "c", "b"]], layout)
    said = "targets must have the tasks as columns in the order of names; column 1 is 'b', where names has 'c'"
    with pytest.raises(InvalidArgumentError, match=said):
        from_arrays(np.zeros((20, 1)), frame, names=["a", "c", "b"])
    with pytest.raises(InvalidArgumentError, match=said):
        TaskLayout.from_targets(frame, ["a", "c", "b"])
    renamed = frame.set_axis(["a", "x", "b"], axis=1)  # other names: by position
    np.testing.assert_array_equal(from_arrays(np.zeros((20, 1)), renamed, layout).targets, frame.to_numpy())


def test_known_labels_in_uint8(rng):
    layout = TaskLayout(["a"], [200])
    assert known_targets(torch.tensor([[156], [3]], dtype=torch.uint8), layout).all()


def test_odd_arrays_are_taken_without_a_warning(rng):
    base = rng.normal(size=(8, 6))
    frozen = base.copy()
    frozen.setflags(write=False)
    for inputs in (frozen, base[::-1], base[:, ::2], base.astype(">f8"), base.astype(np.longdouble), base.tolist()):
        data = from_arrays(inputs, np.eye(8, dtype=int))
        np.testing.assert_allclose(data.inputs, np.asarray(inputs, dtype=np.float32))


def test_integer_inputs_stay_and_float_inputs_share_memory():
    assert from_arrays(np.zeros((3, 2), dtype=np.uint8), [[0], [1], [0]]).inputs.dtype == torch.uint8
    inputs = np.zeros((3, 2), dtype=np.float32)
    data = from_arrays(inputs, [[0], [1], [0]])
    inputs[1, 1] = 7
    assert data.inputs[1, 1] == 7


def test_items_and_iteration(rng):
    data = some(rng)
    assert len(list(data)) == len(data) == 23
    x, y = data[-1]
    assert torch.equal(x, data.inputs[22])
    assert y.shape == (3,)
    with pytest.raises(IndexError):
        data[23]
    assert "23 samples" in repr(data)
    assert torch.equal(pickle.loads(pickle.dumps(data)).targets, data.targets)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate_fn", [collate, None])
def test_loader_gives_the_same_batches_with_either_collate(rng, collate_fn, workers):
    data = some(rng)
    part = Subset(data, rng.permutation(23)[:17].tolist())
    for dataset, inputs, targets in (
        (data, data.inputs, data.targets),
        (part, data.inputs[part.indices], data.targets[part.indices]),
    ):
        loader = DataLoader(dataset, batch_size=7, collate_fn=collate_fn, num_workers=workers)
        batches = list(loader)
        assert torch.equal(torch.cat([x for x, _ in batches]), inputs)
        assert torch.equal(torch.cat([y for _, y in batches]), targets)


def test_batch_is_a_sequence_of_samples(rng):
    data = some(rng)
    batch = data.__getitems__([4, 4, 0])
    assert isinstance(batch, Batch)
    assert len(batch) == 3
    assert torch.equal(batch[1][0], data.inputs[4])
    assert len(batch[1:]) == 2
    assert [y.tolist() for _, y in batch] == [data.targets[i].tolist() for i in (4, 4, 0)]
    assert collate(batch)[0] is batch.columns[0]
    plain = collate([data[4], data[4], data[0]])
    assert torch.equal(plain[1], collate(batch)[1])


LAYOUT = TaskLayout(["a", "b"], [1, 3])
GOOD = [[0, 2], [1, 0]]


@pytest.mark.parametrize(
    ("inputs", "targets", "layout", "names", "error", "message"),
    [
        ([0.0, 1.0], GOOD, None, None, InvalidArgumentError, r"inputs must be \[samples"),
        ([[0.0], [1.0, 2.0]], GOOD, None, None, InvalidArgumentError, "inputs must be a rectangular"),
        ([["x"], ["y"]], GOOD, None, None, InvalidTypeError, "inputs must hold numbers"),
        (np.array([[1j], [0]]), GOOD, None, None, InvalidTypeError, "inputs must hold"),
        (torch.tensor([[1j], [0]]), GOOD, None, None, InvalidTypeError, "inputs must hold real"),
        ([[0.0], [np.nan]], GOOD, None, None, InvalidArgumentError, "inputs must be finite.*sample 1"),
        ([[np.inf], [0.0]], GOOD, None, None, InvalidArgumentError, "inputs must be finite.*sample 0"),
        ([[1e300], [0.0]], GOOD, None, None, InvalidArgumentError, "finite in torch.float32"),
        ([[0.0]], GOOD, LAYOUT, None, InvalidArgumentError, "as many rows"),
        ([[0.0], [1.0]], [0, 1], None, None, InvalidArgumentError, r"targets must be \[samples"),
        ([[0.0], [1.0]], [0, 1], LAYOUT, None, InvalidArgumentError, r"targets must be \[samples, 2\]"),
        ([[0.0], [1.0]], [[0], [1]], LAYOUT, None, InvalidArgumentError, r"targets must be \[samples, 2\]"),
        ([[0.0], [1.0]], [[0, 3], [1, 0]], LAYOUT, None, InvalidArgumentError, "'b' must lie in 0..2.*holds 3"),
        ([[0.0], [1.0]], [[0, 1], [2, 0]], LAYOUT, None, InvalidArgumentError, "'a' must lie in 0..1.*1 holds 2"),
        ([[0.0], [1.0]], [[0, -1], [1, 0]], LAYOUT, None, InvalidArgumentError, "sample 0 holds -1"),
        ([[0.0], [1.0]], [[0, 0.5], [1, 0]], LAYOUT, None, InvalidArgumentError, "class numbers.*0.5"),
        ([[0.0], [1.0]], [[0, np.inf], [1, 0]], LAYOUT, None, InvalidArgumentError, "class numbers.*inf"),
        ([[0.0], [1.0]], [["0", "1"], ["1", "0"]], LAYOUT, None, InvalidTypeError, "targets must hold numbers"),
        ([[0.0], [1.0]], GOOD, LAYOUT, ["a", "b"], InvalidArgumentError, "names must not"),
        ([[0.0], [1.0]], GOOD, None, ["a"], InvalidArgumentError, "names must have"),
        ([[0.0], [1.0]], GOOD, ["a", "b"], None, InvalidTypeError, "layout must be a TaskLayout"),
        (np.zeros((0, 3)), np.zeros((0, 2), int), LAYOUT, None, InvalidArgumentError, "at least one sample"),
    ],
)
def test_bad_arrays(inputs, targets, layout, names, error, message):
    with pytest.raises(error, match=message):
        from_arrays(inputs, targets, layout, names=names)


def test_constructor_takes_tensors_only():
    with pytest.raises(InvalidTypeError, match="inputs must be a tensor"):
        ArrayTasks(np.zeros((2, 1)), torch.tensor(GOOD), LAYOUT)
    with pytest.raises(InvalidTypeError, match="targets must be integers"):
        ArrayTasks(torch.zeros(2, 1), torch.tensor(GOOD).float(), LAYOUT)


def test_bundle(rng):
    data = some(rng)
    bundle = TaskData("mine", data.layout, data, Subset(data, [1, 2]))
    assert bundle.input_shape == (5,)
    assert bundle.num_features == 5
    assert bundle.num_tasks == 3
    assert list(bundle.parts) == ["train", "test"]
    assert repr(bundle) == "TaskData('mine', 3 tasks, input_shape=(5,), train=23, test=2)"
    with pytest.raises(AttributeError):
        bundle.name = "other"
    images = from_arrays(np.zeros((2, 3, 4, 4)), GOOD)
    assert TaskData("images", images.layout, images, images, images).num_features == 48


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": ""}, InvalidArgumentError, "name must be"),
        ({"layout": ["a"]}, InvalidTypeError, "layout must be"),
        ({"train": iter([])}, InvalidTypeError, "train must be a map-style"),
        ({"test": []}, InvalidArgumentError, "test must hold at least one"),
        ({"val": [torch.zeros(3)]}, InvalidTypeError, "val must yield"),
        ({"val": [(torch.zeros(3), 1)]}, InvalidTypeError, "a tuple of"),
        ({"layout": TaskLayout.binary(["a"])}, InvalidArgumentError, "train must yield one target per task"),
    ],
)
def test_bad_bundles(rng, change, error, message):
    data = some(rng)
    fields = {"name": "x", "layout": data.layout, "train": data, "test": data} | change
    with pytest.raises(error, match=message):
        TaskData(**fields)


@pytest.mark.parametrize("spec", ["", "mnist", "digits:", "mulan", "mulan:", "digit", ":x"])
def test_unknown_spec_lists_the_known_ones(spec):
    with pytest.raises(InvalidArgumentError, match=r"'digits'.*'mulan:DIR/STEM'"):
        load(spec)


def test_spec_of_wrong_type():
    with pytest.raises(InvalidTypeError, match="spec must be a string"):
        load(3)
