"""Pickles from anywhere: plain values and arrays come out, and nothing is run."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
from _papers import python2_pickle
from hypothesis import given, settings
from hypothesis import strategies as st

from pymtg.data._unpickle import read_pickle
from pymtg.errors import FileFormatError


def read(content, directory):
    path = directory / "content"
    path.write_bytes(content)
    return read_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_what_python_3_wrote_is_read(tmp_path, protocol):
    rng = np.random.default_rng()
    arrays = {
        "bytes": rng.integers(0, 256, (7, 5), dtype=np.uint8),
        "fortran": np.asfortranarray(rng.integers(-9, 9, (3, 4))),
        "swapped": rng.normal(size=(2, 3)).astype(">f8"),
        "half": rng.normal(size=4).astype(np.float16),
        "yes": rng.random(5) < 0.5,
        "none": np.zeros((0, 3), dtype=np.int32),
    }
    plain = {"list": [1, 2, 2**70], "text": "fünf", "more": {"a": [1.5, None, (True, b"x")]}, b"raw": b"\x00\xff"}
    found = read(pickle.dumps({**arrays, **plain}, protocol=protocol), tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable
    assert {name: found[name] for name in ("list", "text", "more")} == {n: plain[n] for n in ("list", "text", "more")}
    assert found["raw"] == b"\x00\xff"


def test_what_python_2_wrote_is_read(tmp_path):
    array = np.random.default_rng().integers(0, 256, (3, 4), dtype=np.uint8)
    content = python2_pickle({b"data": array, b"labels": [0, 300, 2], b"names": [b"a.png", b"\xe9"], b"x": b"batch 1"})
    assert pickle.loads(content, encoding="bytes")[b"labels"] == [0, 300, 2]  # the helper writes what Python can read
    found = read(content, tmp_path)
    np.testing.assert_array_equal(found.pop("data"), array)
    assert found == {"labels": [0, 300, 2], "names": [b"a.png", b"\xe9"], "x": b"batch 1"}


class Runs:
    """Pickles as a call."""

    def __init__(self, call, *args):
        self.made = (call, args)

    def __reduce__(self):
        return self.made


class Sets:
    """Pickles as something whose state is set."""

    def __init__(self, made, state):
        self.made = (*made, state)

    def __reduce__(self):
        return self.made


def attacks(mark):
    """Return pickles that would make the file `mark`, or worse."""
    command = f"touch {mark}"
    reconstruct = np.zeros(1).__reduce__()[0]
    return {
        "os.system": pickle.dumps(Runs(os.system, command)),
        "in the dictionary": pickle.dumps({"data": Runs(os.system, command)}),
        "as a key": b"\x80\x02}(" + pickle.dumps(Runs(os.system, command))[2:-1] + b"K\x01u.",
        "in a list in it": pickle.dumps({"data": [1, [Runs(os.system, command)]]}),
        "by the global opcode": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "by the inst opcode": f"(S'{command}'\nios\nsystem\n.".encode(),
        "by the obj opcode": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "eval": pickle.dumps(Runs(eval, f"__import__('os').system('{command}')")),
        "a method of a module's": pickle.dumps(Runs(getattr, "x", "join")),
        "subprocess": pickle.dumps({"data": Runs(subprocess.check_output, ["touch", str(mark)])}),
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cos.path.join\x93.",
        "a name below an admitted one": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "numpy.load": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        "numpy's own runner": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        "setting an admitted function's state": pickle.dumps({"d": Sets((reconstruct, (np.ndarray, (0,), b"b")), 1)}),
        "the admitted function's defaults": b"cnumpy\ndtype\n(N}S'__defaults__'\nNstb.",
        "an instance of an admitted name": b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.",
        "an array of objects": pickle.dumps({"data": np.array([Runs(os.system, command)], dtype=object)}),
        "an array of records": pickle.dumps({"data": np.zeros(2, dtype=[("a", "i4")])}),
        "encoding by a codec": b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
        "a persistent id": b"S'x'\nQ.",
        "an extension": b"\x80\x02\x82\x01.",
        "a set": pickle.dumps({"data": {1, 2}}, protocol=2),
        "a class": pickle.dumps({"data": Runs}),
        "a function": b"\x80\x02}U\x01dcnumpy\ndtype\ns.",
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_hostile_pickles_run_nothing(tmp_path, name):
    mark = tmp_path / "mark"
    with pytest.raises(FileFormatError, match=r"is not a pickle that pymtg reads|truncated or no pickle"):
        read(attacks(mark)[name], tmp_path)
    assert not mark.exists()
    # and nothing was changed for those that come after
    found = read(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}), tmp_path)
    np.testing.assert_array_equal(found["data"], [0, 1, 2])


def test_the_attacks_would_work_on_pickle_itself(tmp_path):
    mark = tmp_path / "mark"
    for name in ("in a list in it", "as a key", "an array of objects"):
        pickle.loads(attacks(mark)[name])
        assert mark.exists(), name
        mark.unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or no pickle"),
        (b"not a pickle", "truncated or no pickle"),
        (pickle.dumps([1, 2]), "it holds a list, not a dictionary"),
        (pickle.dumps({1: 2}), "a int where a name is expected"),
        (b"\x80\x02}r" + struct.pack("<I", 2**32 - 2) + b".", "more memory than its size allows"),
        (b"p99999999999\n.", "more memory than its size allows"),
        (b"T\xfb\xff\xff\xff.", "truncated or no pickle"),
        (b"\x8b\xfb\xff\xff\xff.", "truncated or no pickle"),
        (b"p", "truncated or no pickle"),
        (b"cos", "truncated or no pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", "truncated or no pickle"),
    ],
    ids=[
        "empty",
        "text",
        "a list",
        "a number as key",
        "a memory of gigabytes",
        "the same as text",
        "minus five bytes",
        "a number of these",
        "no line's end",
        "half a name",
        "bytes of exabytes",
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        read(content, tmp_path)


def test_sparse_files_of_gigabytes_are_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(FileFormatError, match="large is too large for what is expected there: 2147483649 bytes"):
        read_pickle(tmp_path / "large")


@pytest.mark.parametrize("change", ["shape", "negative shape", "bytes", "dtype"])
def test_arrays_must_fit_their_bytes(tmp_path, change):
    whole = python2_pickle({b"data": np.zeros((3, 4), dtype=np.uint8)})
    shape = b"K\x03K\x04\x86"
    assert whole.count(shape) == whole.count(b"U\x02u1") == 1
    changed = {
        "shape": whole.replace(shape, b"K\x09K\x04\x86"),
        "negative shape": whole.replace(shape, b"J\xfd\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
        "bytes": whole.replace(b"U\x0c" + bytes(12), b"U\x0b" + bytes(11)),
        "dtype": whole.replace(b"U\x02u1", b"U\x02O8"),
    }[change]
    assert changed != whole
    with pytest.raises(FileFormatError, match="it holds an array"):
        read(changed, tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_gives_the_typed_error_or_plain_values(tmp_path_factory, data):
    whole = bytearray(python2_pickle({b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        found = read(bytes(whole[:cut]) if data.draw(st.booleans()) else bytes(whole), tmp_path_factory.getbasetemp())
    except FileFormatError:
        return
    assert all(
        isinstance(value, (int, float, bytes, str, list, dict, tuple, np.ndarray, type(None)))
        for value in found.values()
    )
