"""Keeping data maps: state dictionaries and files, good and bad ones, and a disk that is full."""

from __future__ import annotations

import copy
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pymtg import DataMap, TaskLayout
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError

LAYOUT = TaskLayout(["a", "b", "ü"], [1, 3, 2], [2.0, None, None], [None, [1, 2, 3], None])


def filled(generator: torch.Generator, *, missing: bool = False, ddof: int = 0, snapshots: int = 2) -> DataMap:
    data_map = DataMap(5, LAYOUT, missing=missing, ddof=ddof)
    for epoch in range(snapshots + 1):
        valid = torch.rand(7, 3, generator=generator) < 0.5 if missing else None
        data_map.update(torch.rand(7, 3, generator=generator), torch.arange(7) % 5, valid=valid)
        if epoch < snapshots:
            data_map.snapshot(10 * epoch - 3)
    data_map.update(torch.full((1, 3), torch.nan), torch.tensor([0]))
    return data_map


def assert_same(a: DataMap, b: DataMap) -> None:
    assert a.layout == b.layout
    assert a.ddof == b.ddof
    for ours, theirs in zip(a.state, b.state, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert [s.epoch for s in a.snapshots] == [s.epoch for s in b.snapshots]
    for ours, theirs in zip(a.snapshots, b.snapshots, strict=True):
        assert torch.equal(ours.words, theirs.words)
        assert torch.equal(ours.counts, theirs.counts)
        assert ours.ddof == theirs.ddof


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_round_trips(missing: bool, ddof: int, generator: torch.Generator, tmp_path: Path) -> None:
    data_map = filled(generator, missing=missing, ddof=ddof)
    path = tmp_path / "map.safetensors"
    data_map.save(path)
    assert os.listdir(tmp_path) == [path.name]
    loaded = DataMap.load(str(path))
    assert_same(loaded, data_map)
    assert loaded.num_rejected == 1
    restored = DataMap(5, LAYOUT, missing=missing, ddof=ddof)
    restored.snapshot(99)
    restored.load_state_dict(data_map.state_dict())
    assert_same(restored, data_map)
    loaded.update(torch.rand(1, 3, generator=generator), torch.tensor([0]))
    assert_same(restored, data_map)  # no memory is shared


def test_save_leaves_the_usual_permissions(generator: torch.Generator, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "map"
    plain.touch()
    filled(generator).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_state_dict_survives_torch_save(generator: torch.Generator, tmp_path: Path) -> None:
    data_map = filled(generator)
    torch.save(data_map.state_dict(), tmp_path / "state.pt")
    restored = DataMap(5, LAYOUT)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(restored, data_map)


def without(name: str) -> Any:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("words"), "words is absent"),
        (without("layout"), "layout is absent"),
        (lambda s: s.update(words=s["words"][:4]), r"state\['words'\] must be torch.int32 \[5, 2, 3\]; got"),
        (lambda s: s.update(words=s["words"].long()), r"state\['words'\] must be torch.int32"),
        (lambda s: s.update(counts=3), r"state\['counts'\] must be .*; got int"),
        (lambda s: s.update(counts=torch.zeros(5, 3, dtype=torch.int16)), r"state\['counts'\] must be"),
        (lambda s: s.update(rejected=torch.zeros(1)), r"state\['rejected'\] must be torch.int64"),
        (lambda s: s.update(ddof=1), "state must be of a map with ddof=0; got 1"),
        (lambda s: s.update(layout=TaskLayout.binary(list("abc")).to_dict()), "its layout differs"),
        (lambda s: s.update(layout={}), "'names' and 'num_classes'"),
        (without("snapshot.-3.words"), "words and counts of each snapshot; epoch -3 lacks one"),
        (lambda s: s.update({"snapshot.-3.words": s["words"][:2]}), r"state\['snapshot.-3.words'\] must be"),
    ],
)
def test_load_state_dict_refuses(spoil: Any, message: str, generator: torch.Generator) -> None:
    state = copy.deepcopy(filled(generator).state_dict())
    spoil(state)
    data_map = filled(generator)
    before = copy.deepcopy(data_map)
    with pytest.raises(InvalidArgumentError, match=message):
        data_map.load_state_dict(state)
    assert_same(data_map, before)


def test_truncated_anywhere(generator: torch.Generator, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    filled(generator).save(path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 37), 0, 1, 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="truncated or no safetensors file") as raised:
            DataMap.load(path)
        assert str(path) in str(raised.value)


def test_damaged_bytes_never_surprise(generator: torch.Generator, tmp_path: Path) -> None:
    """A byte changed in the header: the map, or FileFormatError."""
    path = tmp_path / "map.safetensors"
    filled(generator).save(path)
    whole = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = []
    for _ in range(300):
        at = int(torch.randint(header, (), generator=generator))
        damaged = bytearray(whole)
        damaged[at] = int(torch.randint(256, (), generator=generator))
        path.write_bytes(damaged)
        try:
            DataMap.load(path)
        except FileFormatError as error:
            refused.append(str(error))
    assert refused
    assert all(str(path) in message for message in refused)


def rewritten(path: Path, change: Any) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plain = json.loads(metadata["map"])
    change(tensors, metadata, plain)
    metadata.setdefault("map", json.dumps(plain))
    if metadata["map"] == "drop":
        del metadata["map"]
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m, p: m.update(version="3"), "version '3'; this pymtg reads versions '1' and '2'"),
        (lambda t, m, p: m.pop("version"), "version None"),
        (lambda t, m, p: m.update(format="pt"), "its format is 'pt', not 'pymtg.data_map'"),
        (lambda t, m, p: m.clear(), "its format is None"),
        (lambda t, m, p: m.update(map="drop"), "damaged data map"),
        (lambda t, m, p: m.update(map="{"), "damaged data map"),
        (lambda t, m, p: m.update(map="[1]"), "damaged data map"),
        (lambda t, m, p: m.update(map='{"words": 3}'), "damaged data map"),
        (lambda t, m, p: t.pop("words"), "damaged data map"),
        (lambda t, m, p: t.update(words=t["words"][0]), "damaged data map"),
        (lambda t, m, p: t.update(words=t["words"].float()), "damaged data map"),
        (lambda t, m, p: t.update({n: v[:0] for n, v in t.items() if n != "rejected"}), "damaged data map"),
        (lambda t, m, p: t.update(counts=t["counts"][:2]), "damaged data map"),
        (lambda t, m, p: t.pop("snapshot.-3.counts"), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p.update(ddof=2)), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p.update(ddof=None)), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p["layout"].update(names=["a", "b"])), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p["layout"].update(num_classes="abc")), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p.update(layout=3)), "damaged data map"),
        (lambda t, m, p: (m.pop("map"), p.pop("ddof")), "damaged data map"),
    ],
)
def test_other_files(change: Any, message: str, generator: torch.Generator, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    filled(generator).save(path)
    rewritten(path, change)
    with pytest.raises(FileFormatError, match=message) as raised:
        DataMap.load(path)
    assert str(path) in str(raised.value)


def test_garbage_and_absent(tmp_path: Path, generator: torch.Generator) -> None:
    for number, content in enumerate((b"", b"garbage", b"PK\x03\x04" * 100, os.urandom(5000), b"\xff" * 64)):
        path = tmp_path / f"garbage{number}"
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=f"garbage{number}"):
            DataMap.load(path)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError) as raised:
            DataMap.load(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("path", [None, 3, ["map"]])
def test_what_is_no_path(path: Any) -> None:
    for call in (DataMap.load, DataMap(2, TaskLayout.binary(["a"])).save):
        with pytest.raises(InvalidTypeError, match="path must name a file; got "):
            call(path)


@pytest.mark.parametrize("state", [None, 3, []])
def test_what_is_no_state(state: Any) -> None:
    with pytest.raises(InvalidTypeError, match=r"state must be what state_dict\(\) returned; got "):
        DataMap(2, TaskLayout.binary(["a"])).load_state_dict(state)


def test_saving_where_it_cannot_be(tmp_path: Path, generator: torch.Generator) -> None:
    data_map = filled(generator)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        data_map.save(tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        data_map.save(tmp_path / "absent" / "map")
    assert os.listdir(tmp_path) == ["taken"]


_FULL_DISK = """
import resource, signal, sys, torch
from pymtg import DataMap, TaskLayout
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
data_map = DataMap(5000, TaskLayout.binary(list("abc")))
try:
    data_map.save(sys.argv[1])
except OSError as error:
    assert sys.argv[1] in str(error), error
    print("OSError")
"""


SAVES = """
import sys
import torch
from pymtg import DataMap, TaskLayout

data_map = DataMap(5, TaskLayout(["a", "ü"], [1, 3]), missing=True)
data_map.update(torch.tensor([[0.25, 0.5]]), torch.tensor([2]))
data_map.snapshot(3)
for place in sys.argv[1:]:
    data_map.save(place)
"""


def test_equal_maps_are_equal_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for half in (paths[:4], paths[4:]):  # each in a process of its own, with hash seeds of its own
        subprocess.run([sys.executable, "-c", SAVES, *map(str, half)], check=True)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], "pt") as file:
        assert sorted(file.keys()) == ["counts", "rejected", "snapshot.3.counts", "snapshot.3.words", "words"]
    assert DataMap.load(paths[0]).layout.names == ("a", "ü")


def test_metadata_in_any_order_is_read(generator: torch.Generator, tmp_path: Path) -> None:
    data_map, path = filled(generator), tmp_path / "map.safetensors"
    data_map.save(path)
    content = path.read_bytes()
    for _ in range(4):  # as safetensors itself writes it, and as files were written before
        with safe_open(path, "pt") as file:
            save_file({name: file.get_tensor(name) for name in file.keys()}, tmp_path / "other", file.metadata())  # noqa: SIM118
        assert_same(DataMap.load(tmp_path / "other"), data_map)
        assert sorted((tmp_path / "other").read_bytes()) == sorted(content)


def test_a_file_that_cannot_be_finished_is_named(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pymtg._tensor_files.sort_metadata", fail)
    path = tmp_path / "map.safetensors"
    with pytest.raises(OSError, match=f"the data map could not be written to {path}: Input/output error$"):
        filled(generator).save(path)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
@pytest.mark.parametrize("limit", [0, 100, 50_000])
def test_full_disk(limit: int, tmp_path: Path, generator: torch.Generator) -> None:
    """The old file stays, and no other."""
    path = tmp_path / "map.safetensors"
    filled(generator).save(path)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path), str(limit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "OSError\n"), done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
