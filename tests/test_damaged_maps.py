"""Map files whose form is right and whose content cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pymtg import DataMap, FuzzyKMeans, TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError


def written(path, data_map, plain=None, **tensors):
    state = data_map.state_dict()
    plain = plain or {name: state[name] for name in ("layout", "ddof")}
    content = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)} | tensors
    metadata = {"format": "pymtg.data_map", "version": "1", "map": json.dumps(plain)}
    safetensors.torch.save_file(content, path, metadata)
    return path


@pytest.fixture
def data_map():
    result = DataMap(4, TaskLayout.binary(["a", "b"]))
    result.update(torch.rand(4, 2), torch.arange(4))
    return result


def test_as_written_it_loads(tmp_path, data_map):
    assert torch.equal(DataMap.load(written(tmp_path / "m", data_map)).mean, data_map.mean)


def test_values_that_no_map_holds_are_refused(tmp_path, data_map):
    for name, tensor in {"words": torch.full((4, 2, 2), -1, dtype=torch.int32), "counts": -torch.ones(4).int()}.items():
        with pytest.raises(FileFormatError, match="negative counts, or means or deviations above 1"):
            DataMap.load(written(tmp_path / name, data_map, **{name: tensor}))


def test_metadata_cannot_stand_for_tensors(tmp_path, data_map):
    plain = {"layout": data_map.layout.to_dict(), "ddof": 0, "words": []}
    with pytest.raises(FileFormatError, match="layout and ddof, and nothing else"):
        DataMap.load(written(tmp_path / "m", data_map, plain))


def test_a_place_that_cannot_be_written_is_named_itself(tmp_path, data_map):
    with pytest.raises(FileNotFoundError, match=r"absent/map\.safetensors'$"):
        data_map.save(tmp_path / "absent" / "map.safetensors")
    with pytest.raises(IsADirectoryError):
        data_map.save(tmp_path)


def test_a_matrix_of_distances_is_no_gram_matrix():
    points = np.random.default_rng().normal(size=(6, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    with pytest.raises(InvalidArgumentError, match="is it a matrix of distances"):
        FuzzyKMeans(2).fit_gram(distances)
