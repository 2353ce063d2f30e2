"""Attribute-relation files (ARFF), dense and sparse, as one matrix of numbers. Parsed by liac-arff."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg.errors import FileFormatError

__all__ = ["Table", "read_arff"]

_DECLARATION = re.compile(
    r"""^\s*@attribute\s+
    (?P<name> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [^\s{]+ )
    \s*(?P<type>\S.*?)\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
_LONGEST_MESSAGE = 160


@dataclass(frozen=True)
class Table:
    """One ARFF file.

    Parameters
    ----------
    names
        The A attributes' names, without quotes and escapes.
    nominal
        Per attribute its declared values, None where it is numeric.
    values
        ``[N, A]``: numbers, the position in `nominal` for a nominal attribute, NaN for ``?``. float64, or float32
        for a sparse file, whose matrix is large.
    sparse
        Whether the rows are written sparsely.
    """

    names: tuple[str, ...]
    nominal: tuple[tuple[str, ...] | None, ...]
    values: npt.NDArray[np.floating[Any]]
    sparse: bool


def read_arff(path: Path) -> Table:
    """Read an ARFF file with numeric and nominal attributes.

    Raises
    ------
    FileFormatError
        If the file is not valid ARFF, holds an attribute of another kind or no rows; one line, with the line's number.
    ImportError
        If liac-arff is not installed.
    """
    arff = _liac_arff()
    lines = _Lines(path)
    sparse = lines.sparse
    layout = arff.LOD_GEN if sparse else arff.DENSE_GEN
    try:
        decoded = arff.load(lines, encode_nominal=True, return_type=layout)
        nominal = tuple(tuple(kind) if isinstance(kind, list) else None for _, kind in decoded["attributes"])
        read_rows = _sparse_rows if sparse else _dense_rows
        values = read_rows(decoded["data"], len(nominal))
    except (arff.ArffException, ValueError, csv.Error) as error:
        raise FileFormatError(f"{path}, line {lines.number}: {_reason(error, arff)}") from None
    if len(values) == 0:
        raise FileFormatError(f"{path} holds no rows after @data")
    return Table(tuple(lines.names), nominal, values, sparse)


class _Lines:
    """The file's lines as liac-arff can take them; knows the names, and which line was handed out last.

    liac-arff wants a blank, not a tab, after a keyword, leaves escapes in names and splits some quoted names in the
    wrong place. So the names are read here, and the parser gets numbers in their stead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = _decoded(path.read_bytes()).split("\n")
        self.number = 0
        self.names: list[str] = []

    @property
    def sparse(self) -> bool:
        in_data = False
        for line in self.lines:
            row = line.strip()
            if in_data and row and not row.startswith("%"):
                return row.startswith("{")
            in_data = in_data or row[:5].lower() == "@data"
        return False

    def __iter__(self) -> Iterator[str]:
        lines = iter(self.lines)
        for line in lines:
            self.number += 1
            word = line.lstrip()[:10].lower()
            if word.startswith("@attribute"):
                yield self._declaration(line)
            elif word.startswith("@relation"):
                yield "@relation data"  # its name may hold anything and is not needed
            else:
                yield line
            if word.startswith("@data"):
                break
        for line in lines:
            self.number += 1
            yield line

    def _declaration(self, line: str) -> str:
        match = _DECLARATION.match(line)
        if match is None:
            raise ValueError("an attribute needs a name and a type")
        name, kind = _unquoted(match["name"]), match["type"]
        if name in self.names:
            raise ValueError(f"the attribute {name!r} is declared twice")
        self.names.append(name)
        if kind.lower() == "integer":
            kind = "numeric"  # the same numbers; liac-arff lets a broken integer pass
        elif not kind.startswith("{") and kind.lower() not in ("numeric", "real"):
            raise ValueError(f"the attribute {name!r} is of type {kind}; numeric and nominal ones can be read")
        return f"@attribute {len(self.names)} {kind}"


def unescaped(text: str) -> str:
    r"""Return `text` without the backslashes that escape the character behind them (``m\'usica`` is ``m'usica``)."""
    return re.sub(r"\\(.)", r"\1", text)


def _unquoted(name: str) -> str:
    return unescaped(name[1:-1] if name[0] in "\"'" else name)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # what older Weka files are in; any byte is valid


def _dense_rows(rows: Iterable[list[Any]], width: int) -> npt.NDArray[np.floating[Any]]:
    matrix = [np.array(row, dtype=np.float64) for row in rows]  # None, a missing value, becomes NaN
    return np.stack(matrix) if matrix else np.empty((0, width))


def _sparse_rows(rows: Iterable[dict[int, Any]], width: int) -> npt.NDArray[np.floating[Any]]:
    counts: list[int] = []
    columns: list[int] = []
    entries: list[Any] = []
    for row in rows:
        if row and max(row) >= width:  # the parser looks at the number only where a value is given
            raise ValueError(f"the row has a value for attribute {max(row)}; the last one is {width - 1}")
        counts.append(len(row))
        columns.extend(row.keys())
        entries.extend(row.values())
    values = np.zeros((len(counts), width), dtype=np.float32)  # an absent nominal value is its first one, code 0
    with np.errstate(over="ignore"):  # too large for float32: infinite, which the caller looks for
        values[np.repeat(np.arange(len(counts)), counts), columns] = np.array(entries, dtype=np.float32)
    return values


def _reason(error: Exception, arff: ModuleType) -> str:
    if isinstance(error, arff.BadDataFormat):
        return "the row does not have one value per attribute"  # the parser's own message repeats the whole row
    if isinstance(error, arff.BadNominalValue):
        reason = error.message.split(",")[0]
    elif isinstance(error, arff.ArffException):
        reason = error.message.replace(", at line %d", "").replace(" at line %d", "")
    else:
        reason = str(error)
    reason = " ".join(reason.replace("%%", "%").split())
    return reason if len(reason) <= _LONGEST_MESSAGE else reason[:_LONGEST_MESSAGE] + "..."


def _liac_arff() -> ModuleType:
    try:
        import arff
    except ImportError:
        raise ImportError("reading ARFF files needs liac-arff: pip install 'pymtg[mulan]'") from None
    module: ModuleType = arff
    return module
