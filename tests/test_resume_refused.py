"""Checkpoints of other runs, options that cannot be, and directories that are in use."""

from __future__ import annotations

import pytest
import torch
from _resume_run import LAYOUT, adagrad, dmtg, make, stg
from _resumed import fit, stopped

from pymtg import TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.nets import mlp
from pymtg.trainers import CheckpointWarning, STGTrainer, _checkpoints
from pymtg.trainers._checkpoints import CheckpointFolder
from pymtg.trainers._interval import Interval

OTHERS = {
    "options epochs (5 there, 6 here)": {"epochs": 6},
    "options seed": {"seed": 0},
    "options lr (0.01 there, 0.02 here)": {"lr": 0.02},
    "options optimizer (None there, '_resume_run.adagrad' here)": {"optimizer": adagrad},
    "options snapshot_epochs": {"snapshot_epochs": [1, 5]},
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_options_are_refused_by_name(message, seed, tmp_path):
    data = stopped(tmp_path, seed + 1)
    with pytest.raises(InvalidArgumentError, match="resume must continue the same run") as seen:
        fit(stg(**{"seed": seed + 1, **OTHERS[message]}, checkpoint_dir=tmp_path), data)
    assert message in str(seen.value)


def test_what_changes_no_result_may_change(seed, tmp_path):
    data = stopped(tmp_path, seed)
    free = {"num_threads": None, "on_epoch_end": lambda *_: None, "checkpoint_every": 3, "checkpoint_keep": 1}
    stg(seed, checkpoint_dir=tmp_path, log=tmp_path / "log", **free).fit(*data, resume=True)


def test_other_data_layouts_methods_and_networks_are_refused(seed, tmp_path):
    data = stopped(tmp_path, seed)
    with pytest.raises(InvalidArgumentError, match=r"data train inputs .*data train targets"):
        fit(stg(seed, checkpoint_dir=tmp_path), (make(seed + 9), data[1]))
    with pytest.raises(InvalidArgumentError, match="data val"):
        stg(seed, checkpoint_dir=tmp_path, keep_best=False).fit(data[0], resume=True)
    with pytest.raises(InvalidArgumentError, match=r"method \('stg' there, 'dmtg' here\)"):
        fit(dmtg(seed, checkpoint_dir=tmp_path), data)
    layout = TaskLayout(["a", "b", "c", "d", "z"], [1, 3, 1, 2, 1])
    given = (make(seed, layout=layout), make(seed + 1, layout=layout))
    options = {"num_groups": 2, "epochs": 5, "progress": False, "checkpoint_dir": tmp_path, "num_threads": 1}
    with pytest.raises(InvalidArgumentError, match="differs in its layout"):
        STGTrainer(mlp(6, (16,)), layout, **options).fit(*given, resume=True)
    plan = {"num_groups": 2, "epochs": 5, "specialised_epochs": 3, "keep_best": True, "seed": seed}
    plan |= {"batch_size": 16, "lr": 1e-2, "device": "cpu"}
    with pytest.raises(InvalidArgumentError, match="resume must continue with the same network"):
        STGTrainer(mlp(6, (7,)), LAYOUT, **{**plan, **options}).fit(*data, resume=True)


def test_another_version_and_other_files_are_refused(seed, tmp_path, monkeypatch):
    data = stopped(tmp_path, seed)
    monkeypatch.setattr(_checkpoints, "VERSION", "next")
    with pytest.raises(FileFormatError, match=r"checkpoint of version '\d'; this pymtg reads 'next'"):
        fit(stg(seed, checkpoint_dir=tmp_path), data)
    monkeypatch.undo()
    newest = CheckpointFolder(tmp_path).positions()[0]
    make_map = stg(seed).fit(*data).data_map_
    make_map.save(CheckpointFolder(tmp_path).file(newest))
    with pytest.raises(FileFormatError, match=r"is no checkpoint: its format is 'pymtg\.data_map'"):
        fit(stg(seed, checkpoint_dir=tmp_path), data)


def test_another_torch_is_said(seed, tmp_path, monkeypatch):
    data = stopped(tmp_path, seed)
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    with pytest.warns(CheckpointWarning, match=r"was written with torch .*, this is 9\.9\.0: results may differ"):
        fit(stg(seed, checkpoint_dir=tmp_path), data)


def test_a_used_directory_is_not_overwritten(seed, tmp_path):
    data = stopped(tmp_path, seed)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError, match="checkpoint_dir must hold no checkpoints unless resume=True"):
        fit(stg(seed, checkpoint_dir=tmp_path), data, resume=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_options_are_checked(seed, tmp_path):
    data = (make(seed), make(seed + 1))
    with pytest.raises(InvalidArgumentError, match="resume needs a checkpoint_dir"):
        fit(stg(seed), data)
    with pytest.raises(InvalidTypeError, match="resume must be True or False; got 1"):
        stg(seed, checkpoint_dir=tmp_path).fit(*data, resume=1)
    for name in ("checkpoint_dir", "log"):
        with pytest.raises(InvalidTypeError, match=f"{name} must be a path or None; got 3"):
            dmtg(seed, **{name: 3})
    for name in ("checkpoint_dir", "log", "tensorboard", "profile"):
        with pytest.raises(InvalidArgumentError, match=f"{name} must be a path or None; got ''"):
            stg(seed, **{name: ""})
    with pytest.raises(InvalidArgumentError, match="checkpoint_keep must be at least 1; got 0"):
        stg(seed, checkpoint_keep=0)
    for wrong in ("", "0", "ten", "5,6", "1s,2min", "0s", "-1", "1.5"):
        with pytest.raises(InvalidArgumentError, match="checkpoint_every must be a number of epochs"):
            stg(seed, checkpoint_every=wrong)
    for wrong in (None, True, 1.5):
        with pytest.raises(InvalidTypeError, match="checkpoint_every must be"):
            stg(seed, checkpoint_every=wrong)


def test_intervals():
    assert Interval.of(3) == Interval.of("3") == Interval(3, None)
    assert Interval.of("90s") == Interval.of("1.5min") == Interval(None, 90)
    assert Interval.of("2h, 5") == Interval(5, 7200)
    assert [epoch for epoch in range(1, 10) if Interval(3).due_after(epoch)] == [3, 6, 9]
    assert not Interval(1).due_since(0)
