"""CIFAR-10 and CIFAR-100, written in both forms that they are distributed in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from _papers import cifar_parts, write_cifar10, write_cifar100

from pymtg.data import cifar10, cifar100, load
from pymtg.data.cifar import CIFAR10_TASKS, CIFAR100_TASKS
from pymtg.errors import FileFormatError, InvalidArgumentError

READERS = {"cifar10": (write_cifar10, cifar10), "cifar100": (write_cifar100, cifar100)}


def originals(classes, seed):
    """Images and labels as the helper writes them; CIFAR-10's in the order of the five files."""
    (pixels, labels), test = cifar_parts(classes, seed=seed)
    if classes == 10:
        order = np.concatenate([np.arange(i, 50, 5) for i in range(5)])
        pixels, labels = pixels[order], np.array(labels)[order]
    return [(np.asarray(p).reshape(-1, 3, 32, 32), np.array(y)) for p, y in ((pixels, labels), test)]


@pytest.mark.parametrize("form", ["python", "binary"])
def test_the_fifteen_tasks_say_what_the_images_show(tmp_path, seed, form):
    write_cifar10(tmp_path, form, seed=seed)
    data = cifar10(tmp_path, seed)
    assert data.layout.names == CIFAR10_TASKS
    assert data.layout.pos_weight == (10.0,) * 10 + (None,) * 5
    assert str(data) == "TaskData('cifar10', 15 tasks, input_shape=(3, 32, 32), train=50, test=20)"
    for part, (pixels, labels) in zip((data.train, data.test), originals(10, seed), strict=True):
        targets = part.targets.numpy().astype(bool)
        task = {name: targets[:, t] for t, name in enumerate(CIFAR10_TASKS)}
        np.testing.assert_array_equal(targets[:, :10].argmax(1), labels)
        assert (targets[:, :10].sum(1) == 1).all()
        np.testing.assert_array_equal(task["living"], np.isin(labels, [2, 3, 4, 5, 6, 7]))
        np.testing.assert_array_equal(task["not-living"], ~task["living"])
        np.testing.assert_array_equal(task["odd"], labels % 2 == 1)
        assert task["flipped"].sum() == len(labels) // 2
        turned = np.where(task["flipped"][:, None, None, None], pixels[:, :, ::-1], pixels)
        np.testing.assert_array_equal(part.inputs.numpy(), turned)
    coins = torch.cat([data.train.targets, data.test.targets])[:, -1]
    assert 10 < coins.sum() < 60


@pytest.mark.parametrize("form", ["python", "binary"])
def test_a_hundred_tasks_one_against_the_rest(tmp_path, seed, form):
    write_cifar100(tmp_path, form, seed=seed)
    data = cifar100(tmp_path, seed)
    assert data.layout.names == CIFAR100_TASKS
    assert data.layout.pos_weight == (99.0,) * 100
    for part, (pixels, labels) in zip((data.train, data.test), originals(100, seed), strict=True):
        np.testing.assert_array_equal(part.inputs.numpy(), pixels)
        np.testing.assert_array_equal(part.targets.numpy().nonzero()[1], labels)
        assert int(part.targets.sum()) == len(labels)


@pytest.mark.parametrize("name", READERS)
def test_folder_or_the_one_around_either_form_one_result(tmp_path, name, seed):
    write, read = READERS[name]
    folders = [write(tmp_path / form, form) for form in ("python", "binary")]
    sets = [read(place, seed) for folder in folders for place in (folder, folder.parent)]
    sets.append(load(f"{name}:{tmp_path / 'binary'}", seed))
    for other in sets[1:]:
        for part in ("train", "test"):
            assert torch.equal(getattr(other, part).inputs, getattr(sets[0], part).inputs)
            assert torch.equal(getattr(other, part).targets, getattr(sets[0], part).targets)


def test_validation_rows_are_taken_from_the_training_set_by_class(tmp_path, seed):
    write_cifar10(tmp_path)
    whole, split, other = cifar10(tmp_path, seed), cifar10(tmp_path, seed, val_size=0.2), cifar10(tmp_path, seed + 1)
    assert [len(p) for p in (split.train, split.val, split.test)] == [40, 10, 20]
    assert (split.val.targets[:, :10].sum(0) == 1).all()
    rows = torch.cat([split.train.inputs, split.val.inputs]).flatten(1)
    known = {tuple(row.tolist()) for row in whole.train.inputs.flatten(1)}
    assert {tuple(row.tolist()) for row in rows} == known  # flips do not depend on the sizes
    assert torch.equal(split.test.inputs, whole.test.inputs)
    assert not torch.equal(other.train.targets[:, -3:], whole.train.targets[:, -3:])
    assert split.val.mean == whole.train.mean != (0.0,) * 3


def test_weights_can_be_left_out(tmp_path):
    write_cifar100(tmp_path)
    assert cifar100(tmp_path, balanced=False).layout.pos_weight is None


@pytest.mark.parametrize(
    ("form", "missing", "archive"),
    [("python", "data_batch_3", "cifar-10-python.tar.gz"), ("binary", "test_batch.bin", "cifar-10-binary.tar.gz")],
)
def test_a_missing_file_is_named_and_where_to_get_it(tmp_path, form, missing, archive):
    (write_cifar10(tmp_path, form) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing} is missing; it is part of {archive}.*Toronto"):
        cifar10(tmp_path)


def test_no_set_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no CIFAR-100: unpack cifar-100-python.tar.gz or .*Toronto"):
        cifar100(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        cifar10(tmp_path / "nowhere")


def rewritten(change):
    def rewrite(path):
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        path.write_bytes(pickle.dumps(change(content), protocol=2))

    return rewrite


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "truncated": ("python", cut(1000), "truncated or no pickle"),
    "no data": ("python", rewritten(lambda c: {b"fine_labels": [1]}), "must hold 'data', .* got none"),
    "wrong width": ("python", rewritten(lambda c: {**c, b"data": c[b"data"][:, :-1]}), r"got uint8 \(50, 3071\)"),
    "wrong dtype": ("python", rewritten(lambda c: {**c, b"data": c[b"data"].astype("f4")}), "got float32"),
    "too few labels": ("python", rewritten(lambda c: {**c, b"fine_labels": [1, 2]}), "for each of 50.*list of 2"),
    "labels that are text": ("python", rewritten(lambda c: {**c, b"fine_labels": ["1"] * 50}), "a class number for"),
    "a class too many": ("python", rewritten(lambda c: {**c, b"fine_labels": [100] * 50}), r"in 0\.\.99; got 100"),
    "a huge class": ("python", rewritten(lambda c: {**c, b"fine_labels": [2**80] * 50}), "no class has"),
    "no images": ("python", rewritten(lambda c: {b"data": c[b"data"][:0], b"fine_labels": []}), "holds no images"),
    "binary, truncated": ("binary", cut(3074 * 3 + 1), "records of 3074 bytes; got 9223 bytes"),
    "binary, empty": ("binary", cut(0), "holds no images"),
    "binary, another set's": ("binary", lambda path: path.write_bytes(b"\x00\xff" + bytes(3072)), "got 255"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_give_typed_errors(tmp_path, name):
    form, damage, message = DAMAGE[name]
    folder = write_cifar100(tmp_path, form)
    damage(folder / ("train" if form == "python" else "train.bin"))
    with pytest.raises(FileFormatError, match=message):
        cifar100(tmp_path)


def test_bad_arguments(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(InvalidArgumentError, match="seed must lie"):
        cifar10(tmp_path, -1)
    with pytest.raises(InvalidArgumentError, match="val_size"):
        cifar10(tmp_path, val_size=1.0)
