"""CelebA in the form in which it is distributed, and image files in general."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from _papers import ATTRIBUTES, write_celeba
from _settings import new_seed
from PIL import Image
from torch.utils.data import DataLoader

from pymtg import TaskLayout
from pymtg.data import ImageFiles, PixelTasks, celeba, load
from pymtg.data.celeba import DMTG_ATTRIBUTES
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError

TEXTS = ("list_attr_celeba.txt", "list_eval_partition.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return write_celeba(tmp_path_factory.mktemp("celeba"), seed=seed)


@pytest.fixture
def small(tmp_path):
    """A set that a test may damage."""
    return write_celeba(tmp_path, 3, 1, 2)


def attributes_file(folder):
    """The attributes file by another reader: {image: {attribute: 0 or 1}}."""
    lines = (folder / TEXTS[0]).read_text().splitlines()
    rows = [line.split() for line in lines[2:]]
    return {row[0]: dict(zip(lines[1].split(), [int(v == "1") for v in row[1:]], strict=True)) for row in rows}


@pytest.mark.parametrize("attributes", ["9", "all", ["Young", "Bald"]], ids=str)
@pytest.mark.parametrize("images", ["disk", "memory"])
def test_images_and_labels_of_every_part(folder, attributes, images):
    data = celeba(folder, attributes, size=16, images=images)
    wanted = {"9": DMTG_ATTRIBUTES, "all": ATTRIBUTES}.get(
        attributes if isinstance(attributes, str) else "", attributes
    )
    assert data.layout.names == tuple(wanted)
    assert [len(p) for p in (data.train, data.val, data.test)] == [24, 6, 8]
    known = attributes_file(folder)
    for part, first in ((data.train, 1), (data.val, 25), (data.test, 31)):
        for i in (0, len(part) - 1):
            name = f"{first + i:06d}.jpg"
            image, targets = part[i]
            assert targets.tolist() == [known[name][attribute] for attribute in wanted]
            with Image.open(folder / "img_align_celeba" / name) as file:
                small = file.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(image.numpy(), np.array(small).transpose(2, 0, 1) / 255, atol=1e-6)


def test_small_sets_are_kept_in_memory_and_large_ones_are_not(folder, monkeypatch):
    data = celeba(folder, size=16)
    assert [type(p) for p in (data.train, data.val, data.test)] == [PixelTasks] * 3
    monkeypatch.setattr(sys.modules["pymtg.data.celeba"], "_MOST_IN_MEMORY", 16 * 16 * 3 * 10)
    data = celeba(folder, size=16)
    assert [type(p) for p in (data.train, data.val, data.test)] == [ImageFiles, PixelTasks, PixelTasks]


@pytest.mark.parametrize("around", ["", "celeba", "CelebA"])
def test_the_folders_of_the_distribution_are_found(tmp_path, around):
    write_celeba(tmp_path / around, 3, 0, 2, spread=True)
    data = load(f"celeba:{tmp_path}", attributes="all", image_size=12)
    assert (len(data.train), data.val, len(data.test)) == (3, None, 2)
    assert data.input_shape == (3, 12, 12)


def test_images_in_a_folder_of_the_same_name_twice(small):
    inner = small / "img_align_celeba" / "img_align_celeba"
    inner.mkdir()
    for file in (small / "img_align_celeba").glob("*.jpg"):
        file.rename(inner / file.name)
    assert len(celeba(small).train) == 3


def test_workers_read_the_same(folder):
    data = celeba(folder, size=16, images="disk").train
    plain = [torch.cat(part) for part in zip(*DataLoader(data, 5), strict=True)]
    read = [torch.cat(part) for part in zip(*DataLoader(data, 5, num_workers=2), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(plain, read, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][0], data[3][0])
    assert data.nbytes == data.in_memory().inputs.numel()


def test_crop_takes_the_middle(folder):
    whole = ImageFiles(
        folder / "img_align_celeba", ["000001.jpg"], torch.zeros(1, 1), TaskLayout.binary(["x"]), size=100, crop=100
    )
    with Image.open(folder / "img_align_celeba" / "000001.jpg") as file:
        middle = np.array(file)[59:159, 39:139]
    np.testing.assert_allclose(whole[0][0].numpy(), middle.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("name", [*TEXTS, "img_align_celeba"])
def test_a_missing_part_is_named_and_where_to_get_it(small, name):
    (small / name).rename(small / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"holds no CelebA: .*{name}.* is missing.*Hong Kong"):
        celeba(small)


def test_missing_images_are_named(small):
    (small / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002.jpg is missing, and 0 more of 6 images"):
        celeba(small)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        celeba(small / "nowhere")


def edited(number, old, new):
    def edit(text):
        lines = text.split("\n")
        assert old in lines[number]
        lines[number] = lines[number].replace(old, new, 1)
        return "\n".join(lines)

    return edit


DAMAGE = {
    "no head": (0, lambda t: t.split("\n", 1)[1], "must begin with the number of images"),
    "empty": (0, lambda t: "", "must begin with the number of images"),
    "another count": (0, edited(0, "6", "7"), "must have 7 images, as its first line says; it has 6"),
    "cut": (0, lambda t: t[: len(t) // 2], "values, 1 or -1|it has"),
    "a value too many": (0, edited(3, "jpg", "jpg 1"), "line 4: 000002.jpg must have 11 values"),
    "another value": (0, edited(2, "1 ", "0 "), "line 3|must have"),
    "an attribute twice": (0, edited(1, "Young", "Bald"), "line 2: attributes must have names, each once"),
    "an empty line": (0, edited(3, "000002.jpg", "\n000002.jpg"), "line 4 is empty"),
    "another part": (1, edited(1, " 0", " 3"), "line 2: 000002.jpg must be in part 0, 1 or 2; got '3'"),
    "no part": (1, edited(1, " 0", ""), "line 2: 000002.jpg must be in part"),
    "an image less": (1, edited(0, "000001", "000002"), "must name the images of .*; 000001.jpg is not there"),
    "an image more": (1, lambda t: t + "000009.jpg 0\n", "must name the images of .*; 7 there, 6 in the other"),
    "no test part": (1, lambda t: t.replace(" 2", " 1"), r"none are in test \(2\)"),
    "no training part": (1, lambda t: t.replace(" 0", " 1"), r"none are in train \(0\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_text_files_give_typed_errors(small, name):
    which, damage, message = DAMAGE[name]
    path = small / TEXTS[which]
    path.write_text(damage(path.read_text()))
    with pytest.raises(FileFormatError, match=message):
        celeba(small)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_damaged_images_give_typed_errors_that_name_them(small, content):
    path = small / "img_align_celeba" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:1500] if content is None else content)
    with pytest.raises(FileFormatError, match=r"000001.jpg is truncated or no image"):
        celeba(small, images="memory")
    with pytest.raises(FileFormatError, match=r"000001.jpg is truncated or no image"):
        celeba(small, images="disk")  # whose first image is looked at


def test_an_image_that_is_damaged_later_is_named_when_it_is_read(small):
    data = celeba(small, images="disk")
    (small / "img_align_celeba" / "000002.jpg").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"000002.jpg is truncated or no image"):
        data.train[1]
    (small / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*000003.jpg"):
        data.train[2]


def test_bytes_that_are_no_text(small):
    (small / TEXTS[0]).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="is no text file"):
        celeba(small)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attributes": ["Bald", "Bold"]}, InvalidArgumentError, "attributes must be some of .*Bald.*; got 'Bold'"),
        ({"attributes": ["Bald", "Bald"]}, InvalidArgumentError, "each once"),
        ({"attributes": []}, InvalidArgumentError, "at least one name"),
        ({"attributes": "Bald"}, InvalidTypeError, "'9', 'all' or a sequence of names"),
        ({"attributes": 9}, InvalidTypeError, "'9', 'all' or a sequence of names"),
        ({"size": 0}, InvalidArgumentError, "size must be at least 1"),
        ({"crop": 1.5}, InvalidTypeError, "crop must be an integer"),
        ({"images": "gpu"}, InvalidArgumentError, "images must be 'auto', 'memory' or 'disk'"),
    ],
)
def test_bad_arguments(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        celeba(folder, **arguments)


def test_image_files_need_a_target_each(folder):
    with pytest.raises(InvalidArgumentError, match=r"targets must be \[names, tasks\]"):
        ImageFiles(folder, ["000001.jpg"], torch.zeros(2, 1), TaskLayout.binary(["x"]))
    with pytest.raises(InvalidArgumentError, match="at least one name"):
        ImageFiles(folder, [], torch.zeros(0, 1), TaskLayout.binary(["x"]))


def test_without_pillow_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs pillow: pip install 'pymtg\[images\]'"):
        celeba(folder)


def test_arguments_of_one_set_are_refused_for_another(folder):
    for arguments in ({"attributes": "all"}, {"image_size": 8}, {"images": "disk"}):
        with pytest.raises(InvalidArgumentError, match=f"{next(iter(arguments))} must be left out for the digits"):
            load("digits", **arguments)
    with pytest.raises(InvalidArgumentError, match="targets must be left out for CelebA"):
        load(f"celeba:{folder}", targets=3)
    with pytest.raises(InvalidArgumentError, match=r"'celeba:DIR'.*; got 'celeba:'"):
        load("celeba:")
