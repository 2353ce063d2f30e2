"""Runs that are killed, stopped, damaged and gone on with end as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from _resume_run import (
    LAYOUT,
    TRAINERS,
    Bomb,
    Countdown,
    Noisy,
    adagrad,
    assert_same,
    dmtg,
    learned,
    make,
    milestones,
    stg,
    train,
    train_on_a_full_disk,
)
from hypothesis import given
from hypothesis import strategies as st

from pymtg import TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.nets import mlp
from pymtg.trainers import CheckpointWarning, STGTrainer, _checkpoints
from pymtg.trainers._checkpoints import CheckpointFolder
from pymtg.trainers._interval import Interval
from pymtg.trainers._keeper import FileKeeper
from pymtg.trainers._state_tree import flatten, unflatten
from pymtg.trainers._stopping import StopRequest, on_signals

OFTEN = {"checkpoint_every": "1,0.001s"}  # at almost every batch


def fit(trainer, data, resume=True):
    return learned(trainer.fit(*data, resume=resume))


def stop_and_go_on(build, data, directory, stops, rng):
    """Let a run end by an exception in some random batches, one after the other; return what it comes to learn."""
    for _ in range(stops):
        with pytest.raises(Bomb):
            fit(build(Countdown(rng.randint(2, 18)), checkpoint_dir=directory), data)
    return fit(build(checkpoint_dir=directory), data)


SORTS = {
    "stg": (stg, {}),
    "stg joint start": (stg, {"init": "joint", "num_groups": "auto"}),
    "stg optimizer, scheduler": (stg, {"optimizer": adagrad, "scheduler": milestones}),
    "stg bfloat16, snapshots in a Gram matrix": (stg, {"amp": True, "snapshots": "gram"}),
    "stg snapshots on disk": (stg, {"snapshots": "disk", "init": "joint"}),
    "dmtg": (dmtg, {}),
    "dmtg per sample": (dmtg, {"sampling": "per_sample", "scheduler": milestones, "freeze_trunk": True}),
    "dmtg fixed": (dmtg, {"assignment": "random", "keep_best": False}),
}


@pytest.mark.parametrize("sort", SORTS)
def test_a_run_that_is_stopped_at_random_batches_ends_the_same(sort, seed, tmp_path):
    trainer, options = SORTS[sort]
    data = (make(seed), make(seed + 1))
    whole = fit(trainer(seed, **options), data, resume=False)

    def build(*countdown, **more):
        return trainer(seed, *countdown, **OFTEN, **options, **more)

    found = stop_and_go_on(build, data, tmp_path / "new" / "kept", 4, random.Random(seed))
    assert_same(found, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentations_go_on_where_they_were(workers, seed, tmp_path):
    data = (Noisy(make(seed, 60)), make(seed + 1))
    options = {"epochs": 2, "specialised_epochs": 1, "num_workers": workers}
    whole = fit(stg(seed, **options), data, resume=False)
    stops = 3 if workers == 0 else 2

    def build(*countdown, **more):
        return stg(seed, *countdown, **OFTEN, **options, **more)

    rng = random.Random(seed)
    for _ in range(stops):
        with pytest.raises(Bomb):
            fit(build(Countdown(rng.randint(2, 4)), checkpoint_dir=tmp_path), data)
    assert_same(fit(build(checkpoint_dir=tmp_path), data), whole)


def test_branches_that_were_dropped_stay_dropped(tmp_path):
    options = {"balance_weight": 0, "warm_epochs": 0, "finetune_epochs": 0, "checkpoint_every": 1}
    for seed in range(20):  # until branches are dropped while there are epochs to come
        data = (make(seed), make(seed + 1))
        whole = dmtg(seed, **options).fit(*data)
        if whole.result_.dropped:
            break
    first = min(whole.result_.dropped.values())
    for last in {first, 5}:

        def stop(stage, record, last=last):
            if record.epoch == last + 1:  # the checkpoint is of the epoch before
                raise Bomb

        directory = tmp_path / str(last)
        with pytest.raises(Bomb):
            dmtg(seed, checkpoint_dir=directory, on_epoch_end=stop, **options).fit(*data)
        assert_same(fit(dmtg(seed, checkpoint_dir=directory, **options), data), learned(whole))


# Kills


@pytest.fixture(scope="module")
def processes():
    """A server that has imported all that is needed and starts processes at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pymtg.trainers", "pymtg.groups", "sklearn.metrics", "torch._dynamo"])
    return context


def lines_of(path):
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def finish(processes, target, *arguments):
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def read(path):
    tensors, told = torch.load(path, weights_only=True)
    return tensors, json.loads(told)


def kill_and_go_on(processes, method, seed, kills, folder):
    """Kill a run again and again, a little later every time; return in which stages that was."""
    rng = random.Random(seed)
    total = 28  # epochs of all stages, for both methods
    killed = Counter()
    for k in range(kills):
        process = processes.Process(target=train, args=(method, seed, folder, folder / "out"))
        process.start()
        until = rng.uniform(k, k + 1) / kills * (total - 4)
        deadline = time.monotonic() + 60
        while len(lines_of(folder / "log.jsonl")) < until and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join(60)
        assert process.exitcode == -9, "it was to be killed and ended before"
        done = [json.loads(line) for line in lines_of(folder / "log.jsonl") if line.endswith(b"}")]
        last = done[-1] if done else {"stage": "none", "epoch": 0, "epochs": 0}
        killed["after " * (last["epoch"] == last["epochs"]) + last["stage"]] += 1
    finish(processes, train, method, seed, folder, folder / "out")
    return killed


def check_kills(processes, method, seed, kills, tmp_path):
    finish(processes, train, method, seed, None, tmp_path / "whole")
    killed = kill_and_go_on(processes, method, seed, kills, tmp_path)
    print(f"{method}: {killed.total()} kills: {dict(killed)}")
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))
    log = [json.loads(line) for line in lines_of(tmp_path / "log.jsonl")]
    stages = {"stg": ["joint"] * 12 + ["group 0"] * 8 + ["group 1"] * 8}
    stages["together"] = ["joint"] * 12 + ["group 0", "group 1"] * 8
    stages["dmtg"] = ["warm start"] * 6 + ["dmtg"] * 16 + ["fine-tuning"] * 6
    assert [line["stage"] for line in log] == stages[method]
    assert not [name for name in os.listdir(tmp_path / "kept") if name.startswith(".")]
    return killed


@pytest.mark.parametrize("method", TRAINERS)
def test_a_run_that_is_killed_ends_the_same(method, processes, seed, tmp_path):
    assert check_kills(processes, method, seed, 4, tmp_path).total() == 4


@pytest.mark.slow
@pytest.mark.skipif("PYMTG_TEST_LONG" not in os.environ, reason="takes minutes: set PYMTG_TEST_LONG, or make test-long")
@pytest.mark.parametrize("method", [*TRAINERS, "together"])
def test_a_run_that_is_killed_many_times_ends_the_same(method, processes, seed, tmp_path):
    killed = check_kills(processes, method, seed, 30, tmp_path)
    stages = {
        "stg": {"joint", "group 0", "group 1"},
        "together": {"joint", "group 1"},  # whose line follows that of group 0 at once
        "dmtg": {"warm start", "dmtg", "fine-tuning"},
    }[method]
    assert stages <= {name.removeprefix("after ") for name in killed}


def test_a_signal_at_the_end_of_a_stage_or_between_two_saves(seed, tmp_path, monkeypatch):
    data = (make(seed), make(seed + 1))
    whole = fit(stg(seed), data, resume=False)
    lazy = {"checkpoint_dir": tmp_path, "checkpoint_every": "1h"}
    for method, own in (("stage_done", FileKeeper.stage_done), ("computed", FileKeeper.computed)):

        def then_stop(self, *arguments, own=own):
            found = own(self, *arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            return found

        monkeypatch.setattr(FileKeeper, method, then_stop)
        with on_signals(), pytest.raises(StopRequest) as stop:
            fit(stg(seed, **lazy), data)
        assert (stop.value.number, stop.value.saved) == (signal.SIGTERM, str(tmp_path))
        monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["stage-000.safetensors", "stage-001.safetensors"]
    assert_same(fit(stg(seed, **lazy), data), whole)


def test_without_a_directory_a_signal_ends_a_run_between_two_batches(seed):
    calls = []

    def stop(stage, record):
        os.kill(os.getpid(), signal.SIGINT)
        calls.append(stage)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with on_signals(), pytest.raises(StopRequest) as stopped:
            fit(dmtg(seed, on_epoch_end=stop), (make(seed), make(seed + 1)), resume=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (calls, stopped.value.saved) == (["warm start"], None)


def test_a_signal_whose_exception_somebody_swallows_is_not_lost(seed, tmp_path):
    class Careless(torch.optim.SGD):  # as an import may be that passes over whatever goes wrong
        def __init__(self, params):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(params, lr=0.1)

    with on_signals(), pytest.raises(StopRequest) as stopped:
        fit(stg(seed, optimizer=Careless, checkpoint_dir=tmp_path), (make(seed), make(seed + 1)), resume=False)
    assert (stopped.value.number, stopped.value.saved) == (signal.SIGTERM, str(tmp_path))


# Damage


def stopped(directory, seed, method=stg, batches=30, **options):
    """Leave a run that was stopped; return its data."""
    data = (make(seed), make(seed + 1))
    with pytest.raises(Bomb):
        fit(method(seed, Countdown(batches), checkpoint_dir=directory, **options), data)
    return data


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


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


def test_a_full_disk_is_an_error_and_the_last_good_checkpoint_is_whole(processes, seed, tmp_path):
    for method, trainer in TRAINERS.items():
        folder = tmp_path / method
        process = processes.Process(
            target=train_on_a_full_disk, args=(method, seed, folder, tmp_path / f"{method}.txt")
        )
        process.start()
        process.join(60)
        assert process.exitcode == 0
        message = (tmp_path / f"{method}.txt").read_text(encoding="utf-8")
        assert message.startswith("OSError the checkpoint could not be written to ")
        assert "File too large" in message
        assert message.endswith("those before it are whole")
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
        data = (make(seed), make(seed + 1))
        whole = fit(trainer(seed), data, resume=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(fit(trainer(seed, checkpoint_dir=folder), data), whole)


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


# What is not this run


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


# What is in a directory, and what is not read


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


def test_the_callers_random_states_are_left_alone(seed, tmp_path):
    data = stopped(tmp_path, seed, **OFTEN)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    fit(stg(seed, checkpoint_dir=tmp_path), data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


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


# The log


def test_the_log_has_an_object_an_epoch(seed, tmp_path):
    trainer = dmtg(seed, log=tmp_path / "logs" / "log.jsonl")
    trainer.fit(make(seed), make(seed + 1))
    lines = [json.loads(line) for line in lines_of(tmp_path / "logs" / "log.jsonl")]
    assert [(line["stage"], line["epoch"], line["epochs"]) for line in lines] == [
        (stage, epoch, count)
        for stage, count in (("warm start", 2), ("dmtg", 6), ("fine-tuning", 2))
        for epoch in range(1, count + 1)
    ]
    records = [record for stage in trainer.result_.stages for record in stage.history]
    for line, record in zip(lines, records, strict=True):
        assert (line["loss"], line["val_score"]) == (record.loss, record.val_score)
        assert line["seconds"] == pytest.approx(record.seconds, abs=1e-6)
    grouped = [line for line in lines if line["stage"] == "dmtg"]
    assert [line["entropy"] for line in grouped] == list(trainer.result_.entropies[1:])
    assert [line["temperature"] for line in grouped] == list(trainer.result_.temperatures[1:])
    assert [line["moved"] for line in grouped] == list(trainer.result_.moved[1:])
    assert lines[0]["left"] == pytest.approx(9 * records[0].seconds, abs=2e-3)
    assert lines[-1]["left"] == 0
    assert lines[0]["time"] < lines[-1]["time"]


def test_a_log_goes_on_where_the_run_does_and_is_new_where_it_begins(seed, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("another run's\n")
    data = stopped(tmp_path / "kept", seed, log=log, checkpoint_every=2, batches=10 * 3 + 5)
    first = lines_of(log)
    assert len(first) == 3  # the checkpoint knows two
    with log.open("a") as file:
        file.write('{"stage": "joi')  # as a killed process leaves it
    fit(stg(seed, checkpoint_dir=tmp_path / "kept", log=log), data)
    lines = lines_of(log)
    assert lines[:2] == first[:2]
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 3]
