"""Checkpoints: damage, what is in a directory, what is not read, and values that come back."""

from __future__ import annotations

import json
import os
import pickle
import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from _resume_run import assert_same, dmtg, make, stg
from _resumed import OFTEN, fit, stopped, truncate
from hypothesis import given
from hypothesis import strategies as st

from pymtg.errors import FileFormatError, InvalidTypeError
from pymtg.trainers import CheckpointWarning, _checkpoints
from pymtg.trainers._checkpoints import CheckpointFolder
from pymtg.trainers._state_tree import flatten, unflatten


def flip(path, rng):
    found = bytearray(path.read_bytes())
    found[-rng.randrange(1, 2000)] ^= 1 << rng.randrange(8)
    path.write_bytes(found)


def empty(path, rng):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
@pytest.mark.parametrize("batches", [25, 75], ids=["in the first stage", "later"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage, batches, seed, tmp_path):
    rng = random.Random(seed)
    data = stopped(tmp_path, seed, batches=batches, **OFTEN)
    folder = CheckpointFolder(tmp_path)
    newest, before = folder.positions()[:2]
    damage(folder.file(newest), rng)
    with pytest.warns(CheckpointWarning, match="damaged") as seen:
        found = fit(stg(seed, checkpoint_dir=tmp_path, **OFTEN), data)
    assert folder.file(newest).name in str(seen[0].message)
    assert f"going on from {folder.file(before).name}" in str(seen[0].message)
    assert_same(found, fit(stg(seed), data, resume=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(fit(stg(seed, checkpoint_dir=tmp_path), data), found)  # all stages are there now


def test_a_damaged_stage_is_trained_again(seed, tmp_path):
    data = (make(seed), make(seed + 1))
    whole = fit(stg(seed, checkpoint_dir=tmp_path), data)
    folder = CheckpointFolder(tmp_path)
    assert [position[0] for position in folder.positions() if position[1:] == (0, 0)] == [4, 3, 2, 1]
    truncate(folder.stage_file(1), random.Random(seed))
    with pytest.warns(CheckpointWarning, match="going on from stage-000"):
        assert_same(fit(stg(seed, checkpoint_dir=tmp_path), data), whole)
    assert (tmp_path / "stage-001.safetensors.damaged").exists()
    folder.clear()
    assert not tmp_path.exists()


def test_without_any_good_checkpoint_there_is_an_error(seed, tmp_path):
    data = stopped(tmp_path, seed, batches=25)
    for position in CheckpointFolder(tmp_path).positions():
        truncate(CheckpointFolder(tmp_path).file(position), random.Random(seed))
    with pytest.raises(FileFormatError, match=r"holds no good checkpoint: .*at-000-000002"):
        fit(stg(seed, checkpoint_dir=tmp_path), data)


def test_an_interrupted_write_leaves_the_checkpoints_before(seed, tmp_path, monkeypatch):
    write, written = _checkpoints.save_tensors, []

    def half(temporary, *rest):
        write(temporary, *rest)
        written.append(temporary)
        if len(written) == 7:
            temporary.write_bytes(temporary.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoints, "save_tensors", half)
    data = (make(seed), make(seed + 1))
    with pytest.raises(OSError, match="No space left on device"):
        fit(dmtg(seed, checkpoint_dir=tmp_path), data)
    assert len(written) == 7
    assert_same(fit(dmtg(seed, checkpoint_dir=tmp_path), data), fit(dmtg(seed), data, resume=False))


def test_the_last_positions_and_every_finished_stage_are_kept(seed, tmp_path):
    stopped(tmp_path / "two", seed, batches=10 * 3 + 5)
    assert sorted(os.listdir(tmp_path / "two")) == [
        "at-000-000002-00000000.safetensors",
        "at-000-000003-00000000.safetensors",
    ]
    stopped(tmp_path / "three", seed, batches=10 * 5 + 15, checkpoint_keep=3)
    assert sorted(os.listdir(tmp_path / "three")) == [
        "at-002-000001-00000000.safetensors",
        "stage-000.safetensors",
        "stage-001.safetensors",
    ]
    stopped(tmp_path / "every", seed, batches=10 * 4 + 5, checkpoint_every=2, checkpoint_keep=9)
    assert sorted(os.listdir(tmp_path / "every")) == [
        "at-000-000002-00000000.safetensors",
        "at-000-000004-00000000.safetensors",
    ]


def test_left_overs_of_a_killed_process_go_and_other_files_stay(seed, tmp_path):
    data = stopped(tmp_path, seed)
    (tmp_path / ".at-000-000002-00000000.safetensors.x1y2z3").write_bytes(b"half")
    (tmp_path / ".tmpAb1Yz9").write_bytes(b"half")  # of safetensors
    (tmp_path / "notes.txt").write_text("mine")
    fit(stg(seed, checkpoint_dir=tmp_path), data)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    CheckpointFolder(tmp_path).clear()
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_nothing_is_unpickled(seed, tmp_path, monkeypatch):
    data = stopped(tmp_path, seed, method=dmtg)

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module in (pickle, torch.serialization.pickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    fit(dmtg(seed, checkpoint_dir=tmp_path), data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.dictionaries(st.integers(), st.integers()).map(Counter)
    ),
)


@given(values)
def test_values_come_back(value):
    packed, tensors = flatten(value)
    found = unflatten(json.loads(json.dumps(packed, allow_nan=False)), tensors)
    assert repr(found) == repr(value)


def test_tensors_come_back(tmp_path, generator):
    base = torch.randn(4, 6, generator=generator)
    state = {
        "views": [base[:2], base[2:].T, base],
        "kinds": {str(d): base.to(d) for d in (torch.bfloat16, torch.int16)},
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(True),
        "array": np.arange(6.0).reshape(2, 3),
        3: (np.float64(0.1), float("nan"), -float("inf")),
    }
    folder = CheckpointFolder(tmp_path)
    for batch in range(2, 6):
        folder.write((0, 1, batch), state)
    assert len({folder.file((0, 1, batch)).read_bytes() for batch in range(2, 6)}) == 1, "equal states, equal files"
    found = folder.read((0, 1, 2))
    assert str(found) == str(state).replace("np.float64(0.1)", "0.1")
    assert torch.equal(found["views"][1], base[2:].T)
    assert found["kinds"]["torch.bfloat16"].dtype == torch.bfloat16
    assert found["array"].dtype == np.float64


def test_what_no_checkpoint_can_hold_is_refused_by_its_place(tmp_path):
    with pytest.raises(InvalidTypeError, match=r"a\.1\.b is of type set"):
        CheckpointFolder(tmp_path / "new").write((0, 1, 0), {"a": [1, {"b": {2}}]})
    with pytest.raises(InvalidTypeError, match=r"keys must be text or integers; a has \(1, 2\)"):
        flatten({"a": {(1, 2): 3}})
    with pytest.raises(InvalidTypeError, match="must be dense"):
        flatten({"a": torch.eye(2).to_sparse()})
    assert not (tmp_path / "new").exists()
