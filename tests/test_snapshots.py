"""Snapshots in memory, in a file and in a Gram matrix: the same groups, and what each can and cannot give."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pymtg import DataMap, STGTrainer, TaskLayout, _snapshot, cluster_tasks
from pymtg.cli import main
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError, SnapshotsNotKeptError
from pymtg.nets import mlp
from pymtg.trainers import _stg_run

KINDS = ("memory", "gram", "disk", "host")


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab of a few samples, so that small maps are read in several."""
    monkeypatch.setattr(_snapshot, "_SLAB", 40)
    monkeypatch.setattr(_snapshot, "_FEWEST_ROWS", 3)


def layout_of(num_tasks: int) -> TaskLayout:
    return TaskLayout.binary([f"task{t}" for t in range(num_tasks)])


def fed(kind: str, seed: int, *, tasks: int = 7, samples: int = 23, missing: bool = False, **options: Any) -> DataMap:
    """Return a map that saw random probabilities of three sorts of tasks and took three snapshots."""
    generator = torch.Generator().manual_seed(seed)
    data_map = DataMap(samples, layout_of(tasks), missing=missing, snapshots=kind, **options)
    patterns = torch.rand(3, samples, generator=generator)[torch.arange(tasks) % 3].T
    for epoch in range(1, 4):
        p = (patterns + 0.3 * torch.rand(samples, tasks, generator=generator)).clamp(0, 1)
        valid = torch.rand(samples, tasks, generator=generator) < 0.6 if missing else None
        data_map.update(p, torch.randperm(samples, generator=generator), valid=valid)
        data_map.snapshot(epoch)
    return data_map


def exact_gram(features: torch.Tensor) -> torch.Tensor:
    centred = features.double() - features.double().mean(0)
    return centred @ centred.T


def assert_equal_grams(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype == torch.float64
    assert float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tasks=st.integers(3, 30),
    samples=st.integers(1, 60),
    missing=st.booleans(),
    ddof=st.sampled_from([0, 1]),
)
def test_same_gram_and_groups(seed: int, tasks: int, samples: int, missing: bool, ddof: int) -> None:
    maps = [fed(kind, seed, tasks=tasks, samples=samples, missing=missing, ddof=ddof) for kind in KINDS]
    expected = exact_gram(maps[0].features())
    for data_map in maps:
        assert_equal_grams(data_map.gram(), expected)
        assert torch.equal(data_map.mean, maps[0].mean)
        assert data_map.snapshot_epochs == (1, 2, 3)
    if samples >= 5:
        groups = [cluster_tasks(data_map, 3, random_state=0) for data_map in maps]
        for other in groups[1:]:
            assert other.labels.tolist() == groups[0].labels.tolist()
            torch.testing.assert_close(torch.tensor(other.memberships), torch.tensor(groups[0].memberships))


def test_the_gram_forgets() -> None:
    data_map = fed("gram", 0)
    for use in (
        lambda: data_map.snapshots,
        data_map.features,
        lambda: cluster_tasks(data_map, 2, mode="points"),
        lambda: data_map.snapshot(9).mean,
        lambda: list(data_map.snapshot(10).slabs()),
    ):
        with pytest.raises(SnapshotsNotKeptError, match=r"snapshots='gram'.*'points' use .*snapshots='disk'.*gram\(\)"):
            use()
    assert data_map.snapshot(11).epoch == 11
    assert "snapshots=[1, 2, 3, 9, 10, 11] (gram)" in repr(data_map)
    with pytest.raises(InvalidArgumentError, match="later than the last snapshot's"):
        data_map.snapshot(11)
    assert repr(data_map.snapshot(12)) == "ForgottenSnapshot(epoch=12)"


@pytest.mark.parametrize("kind", KINDS)
def test_without_snapshots_the_present_state(kind: str) -> None:
    data_map, plain = (DataMap(11, layout_of(4), snapshots=k) for k in (kind, "memory"))
    p = torch.rand(11, 4)
    for one in (data_map, plain):
        one.update(p, torch.arange(11))
    assert data_map.snapshots == ()
    assert torch.equal(data_map.features(), plain.features())
    assert torch.equal(data_map.gram(), plain.gram())
    mode = {"mode": "points", "random_state": 0}
    assert cluster_tasks(data_map, 2, **mode) == cluster_tasks(plain, 2, **mode)


@pytest.mark.parametrize("missing", [False, True])
def test_disk_gives_back_what_memory_does(missing: bool, tmp_path: Path) -> None:
    kept = fed("memory", 5, missing=missing)
    on_disk = fed("disk", 5, missing=missing, directory=tmp_path)
    assert os.listdir(tmp_path) == []  # the file has no name
    assert torch.equal(on_disk.features(), kept.features())
    assert torch.equal(on_disk.gram(), kept.gram())
    for ours, theirs in zip(on_disk.snapshots, kept.snapshots, strict=True):
        assert (ours.epoch, ours.ddof) == (theirs.epoch, theirs.ddof)
        for what in ("words", "counts", "mean", "std", "count", "correctness"):
            assert torch.equal(getattr(ours, what), getattr(theirs, what))
    mode = {"mode": "points", "random_state": 0}
    assert cluster_tasks(on_disk, 2, **mode) == cluster_tasks(kept, 2, **mode)


def test_what_is_read_from_the_file_can_be_changed_and_outlives_the_map() -> None:
    data_map = fed("disk", 1)
    before = data_map.gram()
    snapshot = data_map.snapshots[0]
    words = snapshot.words
    expected = words.clone()
    words.zero_()  # the caller's own pages
    assert torch.equal(data_map.gram(), before)
    data_map.reset()
    assert data_map.snapshots == ()
    data_map.snapshot(1)
    del data_map
    assert torch.equal(snapshot.words, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gram_is_a_copy(kind: str) -> None:
    data_map = fed(kind, 3)
    data_map.gram().zero_()
    assert float(data_map.gram().abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_reset_and_merge(kind: str) -> None:
    data_map, other = fed(kind, 1), fed(kind, 2)
    before = data_map.gram()
    data_map.merge_(other)
    assert torch.equal(data_map.gram(), before)
    assert data_map.snapshot_epochs == (1, 2, 3)
    assert int(data_map.count.max()) == 6
    data_map.reset()
    assert data_map.snapshot_epochs == ()
    assert data_map.snapshot_kind == kind
    assert float(data_map.gram().abs().max()) == 0
    data_map.snapshot(1)
    assert data_map.snapshot_epochs == (1,)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str, missing: bool, tmp_path: Path) -> None:
    data_map = fed(kind, 4, missing=missing)
    expected = data_map.gram()
    data_map.save(tmp_path / "map")
    torch.save(data_map, tmp_path / "map.pt")
    torch.save(data_map.state_dict(), tmp_path / "state.pt")
    restored = DataMap(23, layout_of(7), missing=missing, snapshots=kind)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copies = [
        copy.deepcopy(data_map),
        pickle.loads(pickle.dumps(data_map)),
        torch.load(tmp_path / "map.pt", weights_only=False),
        DataMap.load(tmp_path / "map"),
        restored,
    ]
    data_map.update(torch.rand(23, 7), torch.arange(23))
    data_map.snapshot(4)
    for other in copies:
        assert other.snapshot_kind == kind
        assert other.snapshot_epochs == (1, 2, 3)
        assert torch.equal(other.gram(), expected)
        other.update(torch.rand(23, 7), torch.arange(23))
        other.snapshot(4)
        assert not torch.equal(other.gram(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_moves(kind: str) -> None:
    data_map = fed(kind, 6)
    expected = data_map.gram()
    assert data_map.to("meta") is data_map
    assert data_map.device.type == "meta"
    if kind == "memory":
        assert data_map.snapshots[0].words.device.type == "meta"
    else:
        assert torch.equal(data_map.gram(), expected)
    assert fed(kind, 6).to("cpu").to(torch.device("cpu")).snapshot_epochs == (1, 2, 3)


def test_kept_snapshots_load_into_any_kind(tmp_path: Path) -> None:
    for source in ("memory", "disk"):
        data_map = fed(source, 8)
        data_map.save(tmp_path / source)
        for kind in KINDS:
            restored = DataMap(23, layout_of(7), snapshots=kind)
            restored.snapshot(50)
            restored.load_state_dict(data_map.state_dict())
            loaded = DataMap.load(tmp_path / source, snapshots=kind)
            for one in (restored, loaded):
                assert (one.snapshot_kind, one.snapshot_epochs) == (kind, (1, 2, 3))
                assert_equal_grams(one.gram(), data_map.gram())
        with pytest.raises(InvalidArgumentError, match="directory goes with snapshots='disk'"):
            DataMap.load(tmp_path / source, snapshots="gram", directory=tmp_path)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_gram_does_not_load_into_a_map_that_keeps(kind: str, tmp_path: Path) -> None:
    data_map, keeping = fed("gram", 8), fed(kind, 9)
    data_map.save(tmp_path / "map")
    before = keeping.gram()
    with pytest.raises(InvalidArgumentError, match="load it into a map with snapshots='gram'"):
        keeping.load_state_dict(data_map.state_dict())
    assert torch.equal(keeping.gram(), before)
    with pytest.raises(InvalidArgumentError, match="load it into a map with snapshots='gram'"):
        DataMap.load(tmp_path / "map", snapshots=kind)
    assert DataMap.load(tmp_path / "map").snapshot_kind == "gram"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("gram"), "both gram and gram.epochs"),
        (lambda s: s.pop("gram.epochs"), "both gram and gram.epochs"),
        (lambda s: s.update(gram=s["gram"][:6]), r"state\['gram'\] must be torch.float64 \[7, 7\]"),
        (lambda s: s.update(gram=s["gram"].float()), r"state\['gram'\] must be torch.float64"),
        (lambda s: s.update({"gram.epochs": s["gram.epochs"].flip(0)}), "must rise"),
        (lambda s: s.update({"gram.epochs": s["gram.epochs"][:0]}), r"state\['gram.epochs'\] must be"),
        (lambda s: s.update({"gram.epochs": s["gram.epochs"].double()}), r"state\['gram.epochs'\] must be"),
        (lambda s: s.update({"gram.epochs": [1, 2, 3]}), r"state\['gram.epochs'\] must be .*; got list"),
        (
            lambda s: s.update({"snapshot.1.words": s["words"], "snapshot.1.counts": s["counts"]}),
            "snapshots or their Gram matrix, not both",
        ),
    ],
)
def test_spoilt_grams(spoil: Any, message: str) -> None:
    data_map = fed("gram", 1)
    state = copy.deepcopy(data_map.state_dict())
    spoil(state)
    before = data_map.gram()
    with pytest.raises(InvalidArgumentError, match=message):
        data_map.load_state_dict(state)
    assert torch.equal(data_map.gram(), before)


def test_files_with_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "map"
    data_map = fed("gram", 1)
    data_map._store.state()["gram"][0, 0] = torch.nan
    data_map.save(path)
    with pytest.raises(FileFormatError, match="Gram matrix holds NaN"):
        DataMap.load(path)
    whole = fed("gram", 1)
    whole.save(path)
    path.write_bytes(path.read_bytes().replace(rb"\"snapshots\": \"gram\"", rb"\"snapshots\": \"tape\""))
    with pytest.raises(FileFormatError, match="snapshots must be one of memory, gram, disk, host; got 'tape'"):
        DataMap.load(path)


def test_bad_arguments(tmp_path: Path) -> None:
    kinds = ", ".join(map(repr, KINDS))
    with pytest.raises(InvalidArgumentError, match=f"snapshots must be one of {kinds}; got 'tape'"):
        DataMap(3, layout_of(2), snapshots="tape")
    with pytest.raises(InvalidArgumentError, match="directory goes with snapshots='disk'; got snapshots='memory'"):
        DataMap(3, layout_of(2), directory=tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"directory must be one that exists; got .*absent"):
        DataMap(3, layout_of(2), snapshots="disk", directory=tmp_path / "absent")
    with pytest.raises(InvalidTypeError, match="directory must be a path; got 3"):
        DataMap(3, layout_of(2), snapshots="disk", directory=3)  # type: ignore[arg-type]


def test_the_directory_of_a_pickle_may_be_gone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    data_map = fed("disk", 2, directory=place)
    pickled = pickle.dumps(data_map)
    os.rmdir(place)
    assert torch.equal(pickle.loads(pickled).gram(), data_map.gram())


_FULL_DISK = """
import resource, signal, sys, torch
from pymtg import DataMap, TaskLayout
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
data_map = DataMap(5000, TaskLayout.binary(list("abc")), snapshots="disk", directory=sys.argv[1])
data_map.update(torch.rand(5000, 3), torch.arange(5000))
data_map.snapshot(1)
before = data_map.gram()
data_map.update(torch.rand(5000, 3), torch.arange(5000))
for limit in (150_000, 200_000, 260_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        data_map.snapshot(2)
    except OSError as error:
        assert "a snapshot could not be written" in str(error) and sys.argv[1] in str(error), error
        print("OSError")
    assert data_map.snapshot_epochs == (1,) and torch.equal(data_map.gram(), before)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
data_map.snapshot(2)
assert torch.equal(data_map.snapshots[1].mean, data_map.mean) and torch.equal(data_map.snapshots[1].std, data_map.std)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_full_disk(tmp_path: Path) -> None:
    """The map stays as it was, and the snapshot can be taken once there is room."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "OSError\n" * 3, "")
    assert os.listdir(tmp_path) == []


def test_no_room_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        DataMap(3, layout_of(2), snapshots="disk")


# in the trainer and on the command line


def trained(**options: Any) -> STGTrainer:
    layout = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(61, 5, generator=generator)
    targets = (inputs @ torch.randn(5, 4, generator=generator) > 0).long()
    trainer = STGTrainer(
        mlp(5, (8,)), layout, num_groups=2, epochs=4, batch_size=16, num_threads=1, progress=False, **options
    )
    return trainer.fit((inputs, targets))


def test_the_trainer_groups_alike() -> None:
    plain = trained()
    assert plain.data_map_.snapshot_kind == "memory"  # small
    for kind in KINDS:
        trainer = trained(snapshots=kind)
        assert trainer.data_map_.snapshot_kind == kind
        assert trainer.data_map_.snapshot_epochs == (1, 2, 3, 4)
        assert trainer.groups_.labels.tolist() == plain.groups_.labels.tolist()
        assert_equal_grams(trainer.data_map_.gram(), plain.data_map_.gram())
    assert trained(snapshots="disk", mode="points").groups_ == trained(mode="points").groups_


def test_auto_goes_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stg_run, "_MOST_IN_MEMORY", 8 * 61 * 4 * 4 - 1)
    trainer = trained()
    assert trainer.data_map_.snapshot_kind == "disk"
    assert len(trainer.data_map_.snapshots) == 4  # all that the documentation promises


def test_what_the_trainer_refuses() -> None:
    with pytest.raises(InvalidArgumentError, match="snapshots must be 'memory', 'disk' or 'auto' for mode 'points'"):
        trained(snapshots="gram", mode="points")
    with pytest.raises(InvalidArgumentError, match="snapshots must be one of"):
        trained(snapshots="tape")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stg = ["stg", "--data", "digits", "--epochs", "2", "--hidden", "8", "--quiet"]
    labels = []
    for kind in KINDS:
        out = tmp_path / kind
        assert main([*stg, "--snapshots", kind, "--out", str(out)]) == 0
        labels.append([task["label"] for task in json.loads((out / "groups.json").read_text())["tasks"].values()])
        assert json.loads((out / "metrics.json").read_text())["settings"]["snapshots"] == kind
        assert main(["cluster", str(out / "data_map.safetensors"), "--quiet"]) == 0
    assert labels[0] == labels[1] == labels[2]
    sizes = [(tmp_path / kind / "data_map.safetensors").stat().st_size for kind in KINDS]
    assert sizes[1] < sizes[0] / 2
    assert sizes[2] - sizes[0] in range(100)
    capsys.readouterr()
    assert main(["cluster", str(tmp_path / "gram" / "data_map.safetensors"), "--mode", "points"]) == 2
    assert re.fullmatch(r"pymtg cluster: snapshots must come from kept .*snapshots='disk'.*\n", capsys.readouterr().err)
    assert main([*stg, "--snapshots", "gram", "--mode", "points", "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("pymtg stg: --snapshots must be 'memory', 'disk' or 'auto' for mode")


def test_a_map_with_snapshots_on_disk_is_handed_to_a_spawned_process(tmp_path: Path) -> None:
    data_map = DataMap(3, TaskLayout.binary(["a", "b"]), snapshots="disk", directory=tmp_path)
    data_map.update(torch.full((3, 2), 0.5), torch.arange(3))
    data_map.snapshot(1)
    process = torch.multiprocessing.get_context("spawn").Process(target=DataMap.gram, args=(data_map,))
    process.start()
    process.join()
    assert process.exitcode == 0
