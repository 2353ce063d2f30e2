"""Python pickles that may come from anywhere: numbers, text, lists, dicts and arrays come out, and nothing is run.

A pickle is a program. One read here may name what arrays and bytes are written with and nothing else; each name is
answered with a stand-in that only keeps what it was given. No function of another module is called, by whatever name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg.errors import FileFormatError

__all__ = ["read_pickle"]

_MOST_BYTES = 2**31
_DTYPES = {f"{kind}{size}" for kind, sizes in (("u", "1248"), ("i", "1248"), ("f", "248")) for size in sizes} | {"b1"}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_COUNTS = {  # how many bytes follow, and how that is written
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_TOO_MUCH = "it asks for more memory than its size allows"
# What makes instances by other ways than calling the names below, or looks objects up that are not in the file.
_REFUSED_OPCODES = frozenset(
    {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "NEXT_BUFFER"}
)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary of plain values and arrays, pickled by Python 2 or 3.

    Returns
    -------
    The dictionary with its keys as text; its arrays are NumPy's, bytes stay bytes (Python 2 has no other text).

    Raises
    ------
    FileFormatError
        If the file is truncated or no pickle, holds anything but the above, or names something to be run.
    OSError
        If it cannot be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise FileFormatError(f"{path} is too large for what is expected there: {path.stat().st_size} bytes")
    content = path.read_bytes()
    try:
        _check_opcodes(content)
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(key): _finished(value) for key, value in found.items()}
    except _RefusedError as error:
        raise FileFormatError(f"{path} is not a pickle that pymtg reads: {error}") from None
    # whatever a broken program can make the unpickler say
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileFormatError(f"{path} is truncated or no pickle: {reason}") from None


class _RefusedError(Exception):
    """The pickle holds or asks for something that is not admitted."""


class _StandIn:
    """Answers for a name in a pickle; cannot be changed by the pickle, and is no class that it could instantiate."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("it sets the state of a function")


class _DType:
    """What a pickle says of a dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code = _text(code)
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        """Return NumPy's, if it is one of plain numbers."""
        code = self.code.lstrip("<>|=")
        if code not in _DTYPES or self.order not in ("<", ">", "|", "="):
            raise _RefusedError(f"it holds an array of {self.code!r}; plain numbers are read")
        order = self.code[0] if self.code[0] in "<>" else self.order
        return np.dtype(f"{order}{code}")


class _Array:
    """What a pickle says of an array: shape, dtype, order and bytes."""

    __slots__ = ("state",)

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state[-4:]  # without the version before

    def numpy(self) -> npt.NDArray[Any]:
        """Return NumPy's if shape and bytes fit one another."""
        if not isinstance(self.state, tuple) or len(self.state) != 4:
            raise _RefusedError("it holds an array without contents")
        shape, dtype, fortran, content = self.state
        sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not sizes or not isinstance(dtype, _DType) or not isinstance(content, (bytes, bytearray)):
            raise _RefusedError("it holds an array that is not described by shape, dtype and bytes")
        kind = dtype.numpy()
        if math.prod(shape) * kind.itemsize != len(content):
            raise _RefusedError(f"it holds an array {shape} of {kind} with {len(content)} bytes")
        read_only = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        array: npt.NDArray[Any] = read_only.copy()
        return array


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array((shape, dtype, order == "F", content))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("it asks for an encoding other than latin1")
    return text.encode("latin1")


_ADMITTED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): lambda code, *_: _DType(code),
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2, and
    ("__builtin__", "bytes"): lambda: b"",  # none of them
    **{
        (module, "_reconstruct"): lambda *_: _Array()
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core._multiarray_umath")
    },
    **{(module, "_frombuffer"): _from_buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        if found is None:
            raise _RefusedError(f"it asks for {module}.{name}, and only arrays and plain values are read")
        return _StandIn(found)


def _check_opcodes(content: bytes) -> None:
    """Go through the program without running it: what it may not do, and places that would need gigabytes of memory.

    By the table of :mod:`pickletools`, whose own reader would copy every string. What is cut off or makes no sense is
    left to the unpickler to complain of.
    """
    at = 0
    while at < len(content):
        opcode = _OPCODES.get(content[at])
        if opcode is None or opcode.name == "STOP":
            return
        if opcode.name in _REFUSED_OPCODES:
            raise _RefusedError(f"it has the instruction {opcode.name}, and only arrays and plain values are read")
        at += 1
        size = opcode.arg.n if opcode.arg is not None else 0
        if size == pickletools.UP_TO_NEWLINE:
            line = content.find(b"\n", at)
            if opcode.name == "PUT" and int(content[at:line]) > len(content):
                raise _RefusedError(_TOO_MUCH)
            at = line + 1 if opcode.name != "GLOBAL" else content.find(b"\n", line + 1) + 1
            if at == 0 or line < 0:
                return
        elif size in _COUNTS:
            count = struct.calcsize(_COUNTS[size])
            if at + count > len(content):
                return
            following = struct.unpack_from(_COUNTS[size], content, at)[0]
            if following < 0:
                return
            at += count + following
        else:
            if opcode.name == "LONG_BINPUT" and int.from_bytes(content[at : at + size], "little") > len(content):
                raise _RefusedError(_TOO_MUCH)
            at += size


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    raise _RefusedError(f"it has a {type(value).__name__} where a name is expected")


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, (_DType, _StandIn)):
        raise _RefusedError("it holds something else than arrays and plain values")
    return value
