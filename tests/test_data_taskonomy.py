"""Taskonomy-5 in the folders in which it is distributed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from _papers import write_taskonomy
from _settings import new_seed
from PIL import Image
from torch.utils.data import DataLoader

from pymtg.data import IGNORE_INDEX, TaskonomyViews, taskonomy
from pymtg.data.taskonomy import TASKONOMY5, TINY_BUILDINGS
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return write_taskonomy(tmp_path_factory.mktemp("t"), {"hanson": 3, "darden": 2, "ihlen": 1, "other": 1}, seed=seed)


@pytest.fixture
def small(tmp_path):
    """A set that a test may damage."""
    return write_taskonomy(tmp_path, {"merom": 1}, 8)


def file(folder, domain, view=0, building="hanson"):
    name = f"point_{view}_view_{view % 3}_domain_{domain.replace('_semantic', 'semantic')}.png"
    return folder / building / domain / name


def values(folder, domain, view=0):
    with Image.open(file(folder, domain, view)) as image:
        return np.array(image).astype(np.float64)


def test_parts_are_those_of_the_tiny_split(folder):
    data = taskonomy(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (3, 2, 1)
    assert data.layout is TASKONOMY5
    assert [len(TINY_BUILDINGS[part]) for part in ("train", "val", "test")] == [25, 5, 5]
    own = taskonomy(folder, buildings={"train": ["other", "ihlen"], "test": ["nowhere"]})
    assert (len(own.train), own.val, own.test) == (2, None, None)


def test_what_a_view_holds(folder):
    rgb, targets = taskonomy(folder, size=32).train[1]
    np.testing.assert_allclose(rgb, values(folder, "rgb", 1).transpose(2, 0, 1) / 255, atol=1e-6)
    assert tuple(targets) == TASKONOMY5.names
    depth = values(folder, "depth_zbuffer", 1)
    missing = depth == 65535
    assert missing.any()
    np.testing.assert_allclose(targets["depth_zbuffer"][0], np.where(missing, np.nan, (depth - 1500) / 1000), atol=1e-5)
    normal = values(folder, "normal", 1).transpose(2, 0, 1) / 255 * 2 - 1
    np.testing.assert_allclose(targets["normal"], np.where(missing, np.nan, normal), atol=1e-5)
    classes = values(folder, "segment_semantic", 1)
    np.testing.assert_array_equal(targets["segment_semantic"], np.where(classes == 0, IGNORE_INDEX, classes))
    assert targets["segment_semantic"].dtype == torch.int64
    keypoints, edges = values(folder, "keypoints2d", 1), values(folder, "edge_texture", 1)
    np.testing.assert_allclose(targets["keypoints2d"][0], (keypoints - 50) / 100, atol=1e-5)
    np.testing.assert_allclose(targets["edge_texture"][0], (edges - 718) / 1070, atol=1e-5)


def test_resizing_leaves_missing_what_it_is_and_averages_the_rest(folder):
    rgb, targets = taskonomy(folder, size=8).train[0]
    assert rgb.shape == (3, 8, 8)
    assert {name: tuple(t.shape) for name, t in targets.items()} == {
        "depth_zbuffer": (1, 8, 8),
        "normal": (3, 8, 8),
        "segment_semantic": (8, 8),
        "keypoints2d": (1, 8, 8),
        "edge_texture": (1, 8, 8),
    }
    depth = targets["depth_zbuffer"]
    assert torch.equal(depth.isnan().expand(3, -1, -1), targets["normal"].isnan())
    known = set(((values(folder, "depth_zbuffer") - 1500) / 1000).astype(np.float32).ravel().tolist())
    assert set(depth[~depth.isnan()].tolist()) <= known
    assert targets["edge_texture"].std() < (values(folder, "edge_texture").std() / 1070) / 1.5


def test_folders_by_domain_give_the_same(tmp_path):
    first = taskonomy(write_taskonomy(tmp_path / "a", {"merom": 2}, 8, seed=3), size=8).train
    second = taskonomy(write_taskonomy(tmp_path / "b", {"merom": 2}, 8, seed=3, by_domain=True), size=8).train
    for i in range(2):
        for name, target in first[i][1].items():
            assert torch.equal(target.nan_to_num(9), second[i][1][name].nan_to_num(9))


def test_loaders_batch_it_with_workers(folder):
    data = taskonomy(folder, size=16).train
    batches = [list(DataLoader(data, 2, num_workers=workers)) for workers in (0, 2)]
    for (plain, targets), (read, again) in zip(*batches, strict=True):
        assert torch.equal(plain, read)
        assert all(torch.equal(targets[name].nan_to_num(9), again[name].nan_to_num(9)) for name in targets)
    assert len(pickle.loads(pickle.dumps(data))) == 3


def test_no_training_building(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no Taskonomy: .*\(nobody, \.\.\.\).*Stanford"):
        taskonomy(folder, buildings={"train": ["nobody"]})
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        taskonomy(tmp_path / "nowhere")


def test_a_missing_domain_is_named(small):
    file(small, "normal", building="merom").unlink()
    with pytest.raises(FileNotFoundError, match=r"point_0_view_0_domain_normal.png is missing; every view needs"):
        taskonomy(small)


@pytest.mark.parametrize("domain", ["rgb", *TASKONOMY5.names])
def test_damaged_files_are_named_when_they_are_read(small, domain):
    path = file(small, domain, building="merom")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FileFormatError, match=f"{path.name} is truncated or no image"):
        taskonomy(small).train[0]


def test_pictures_of_another_kind_are_refused(small):
    coloured = np.zeros((8, 8, 3), dtype=np.uint8)
    Image.fromarray(coloured).save(file(small, "depth_zbuffer", building="merom"))
    with pytest.raises(FileFormatError, match=r"depth_zbuffer.png must have one channel of numbers; .*RGB"):
        taskonomy(small).train[0]


def test_classes_out_of_range_are_refused(small):
    path = file(small, "segment_semantic", building="merom")
    Image.fromarray(np.full((8, 8), 18, dtype=np.uint8)).save(path)
    with pytest.raises(FileFormatError, match=r"must hold classes in 0\.\.17; got 18"):
        taskonomy(small).train[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, InvalidArgumentError, "size must be at least 1"),
        ({"buildings": ["hanson"]}, InvalidTypeError, "buildings must be a mapping"),
        ({"buildings": {"train": "hanson"}}, InvalidTypeError, "must be a sequence of names"),
        ({"buildings": {"val": ["hanson"]}}, InvalidArgumentError, "buildings must have 'train'"),
        ({"buildings": {"train": ["a"], "dev": ["b"]}}, InvalidArgumentError, "buildings must have 'train'"),
        ({"buildings": {"train": ["a"], "val": ["a"]}}, InvalidArgumentError, "'a' stands twice"),
    ],
)
def test_bad_arguments(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        taskonomy(folder, **arguments)
    with pytest.raises(InvalidArgumentError, match="at least one view"):
        TaskonomyViews([])


def test_classes_in_a_palette_are_its_numbers(small):
    path = file(small, "segment_semantic", building="merom")
    numbers = np.random.default_rng().integers(0, 18, (8, 8)).astype(np.uint8)
    coloured = Image.frombytes("P", (8, 8), numbers.tobytes())
    coloured.putpalette(np.random.default_rng().integers(0, 256, 768).tolist())
    coloured.save(path)
    found = taskonomy(small, size=8).train[0][1]["segment_semantic"]
    np.testing.assert_array_equal(found, np.where(numbers == 0, IGNORE_INDEX, numbers.astype(int)))
