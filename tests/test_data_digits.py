"""The built-in digits."""

import numpy as np
import pytest
import torch
from _settings import new_seed
from sklearn.datasets import load_digits

from pymtg.data import digits, load
from pymtg.data.digits import TASK_NAMES
from pymtg.errors import InvalidArgumentError, InvalidTypeError


@pytest.fixture
def seed():
    value = new_seed()
    print(f"PYMTG_TEST_SEED={value}")
    return value


def together(data):
    parts = list(data.parts.values())
    return torch.cat([p.inputs for p in parts]).numpy(), torch.cat([p.targets for p in parts]).numpy()


def test_tasks_say_what_the_images_show(seed):
    data = digits(seed, val_size=0.2)
    assert data.layout.names == TASK_NAMES
    assert set(data.layout.num_classes) == {1}
    inputs, targets = together(data)
    task = {name: targets[:, t].astype(bool) for t, name in enumerate(TASK_NAMES)}
    one_hot = targets[:, :10]
    digit = one_hot.argmax(1)
    assert (one_hot.sum(1) == 1).all()
    np.testing.assert_array_equal(task["odd"], digit % 2 == 1)
    np.testing.assert_array_equal(task["has-loop"], np.isin(digit, [0, 6, 8, 9]))
    np.testing.assert_array_equal(task["no-loop"], ~task["has-loop"])
    assert task["flipped"].sum() == 1797 // 2
    assert 700 < task["random"].sum() < 1100

    # turning the flipped ones back gives scikit-learn's images, each once, with its digit
    images = inputs.reshape(-1, 8, 8) * 16
    images[task["flipped"]] = images[task["flipped"], ::-1]
    rows = np.column_stack([images.reshape(-1, 64), digit])
    original, labels = load_digits(return_X_y=True)
    expected = np.column_stack([original, labels])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_shapes_and_sizes():
    data = digits()
    assert (data.num_features, len(data.train), len(data.test), data.val) == (64, 1198, 599, None)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.dtype == torch.int64
    assert float(data.train.inputs.min()) == 0
    assert float(data.train.inputs.max()) == 1
    assert str(data) == "TaskData('digits', 15 tasks, input_shape=(64,), train=1198, test=599)"


def test_same_seed_same_data_and_sizes_do_not_touch_the_test_part(seed):
    first, again, with_val, other = digits(seed), digits(seed), digits(seed, val_size=0.1), digits((seed + 1) % 2**32)
    for part in ("train", "test"):
        assert torch.equal(getattr(first, part).inputs, getattr(again, part).inputs)
        assert torch.equal(getattr(first, part).targets, getattr(again, part).targets)
    assert torch.equal(first.test.inputs, with_val.test.inputs)
    assert torch.equal(first.test.targets, with_val.test.targets)
    assert not torch.equal(first.test.inputs, other.test.inputs)
    assert torch.equal(load("digits", seed).train.targets, first.train.targets)


def test_parts_are_stratified_by_digit(seed):
    data = digits(seed, test_size=0.25, val_size=0.25)
    for part in data.parts.values():
        shares = part.targets[:, :10].double().mean(0)
        assert ((shares - 0.1).abs() < 0.01).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, InvalidArgumentError, "seed must lie"),
        ({"seed": 2**32}, InvalidArgumentError, "seed must lie"),
        ({"seed": 1.5}, InvalidTypeError, "seed must be an integer"),
        ({"seed": True}, InvalidTypeError, "seed must be an integer"),
        ({"test_size": 1.0}, InvalidArgumentError, "test_size must be a share"),
        ({"test_size": float("nan")}, InvalidArgumentError, "test_size must be a share"),
        ({"val_size": -0.1}, InvalidArgumentError, "val_size must be a share, at least 0"),
        ({"val_size": "0.1"}, InvalidTypeError, "val_size must be a number"),
        ({"test_size": 0.6, "val_size": 0.4}, InvalidArgumentError, "val_size must be less than 1 - test_size"),
        ({"test_size": 0.001}, InvalidArgumentError, "test_size=0.001 does not fit"),
        ({"test_size": 0.999}, InvalidArgumentError, "test_size=0.999 does not fit"),
        ({"test_size": 0}, InvalidArgumentError, "test_size must be a share, above 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        digits(**arguments)
