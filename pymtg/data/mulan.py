"""Sets in Mulan's format: ARFF files, and an XML file that names label columns or a number of target columns."""

from __future__ import annotations

import numbers
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from pymtg.data._arff import Table, read_arff, unescaped
from pymtg.data._features import FeatureScaler, target_figures
from pymtg.data._split import check_seed, split_rows
from pymtg.data.arrays import IGNORE_INDEX, ArrayTasks, from_arrays
from pymtg.data.taskdata import TaskData
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

__all__ = ["mulan", "read_label_names"]


def mulan(
    stem: str | os.PathLike[str],
    seed: int = 0,
    *,
    test_size: float = 1 / 3,
    val_size: float = 0.0,
    targets: int | None = None,
) -> TaskData:
    """Load a set in Mulan's format (Tsoumakas et al. 2011): each label is a binary task, each target a regression.

    Parameters
    ----------
    stem
        ``DIR/yeast`` reads ``DIR/yeast.xml`` and ``DIR/yeast-train.arff`` with ``DIR/yeast-test.arff``, or a single
        ``DIR/yeast.arff``, which is split. With `targets` no XML file is read.
    seed
        Draws the splits.
    test_size, val_size
        Shares below 1 for the test set (of a single file; two files are taken as given) and for the validation set
        (of the single file's or the training file's rows). With `val_size` 0 there is no validation set.
    targets
        None for a multi-label set. For a multi-target regression set, how many of the last columns are the targets.

    Returns
    -------
    Inputs ``[F]`` float32, targets ``[T]`` uint8, or int32 where a label is missing (``?`` becomes -100); the tasks in
    the order of the XML file, which may nest its labels. Features are prepared with figures of the training rows alone:

    - numeric ones are standardised; in sparse files divided by their largest magnitude, so that zero stays zero;
    - 0/1 ones and nominal ones of two values stay 0/1, nominal ones of more values become one column a value;
    - a missing value becomes its column's mean.

    Regression targets are float32 ``[T]``, NaN where missing, standardised by mean and standard deviation (ddof 0) of
    the training rows, which the result keeps as ``target_mean`` and ``target_scale`` (1 for a constant target). An RMSE
    is thus relative to that deviation, and its mean over the targets what the field calls aRRMSE, but for the rows:
    aRRMSE divides by the test rows' deviation from the training mean.

    Raises
    ------
    InvalidArgumentError
        If a file is missing (the message lists what was looked for), or for a bad seed, size or number of targets.
    FileFormatError
        If a file is not valid, the XML names a label that is no column of the ARFF, the two ARFF files declare other
        attributes, a label is not 0 or 1, a target is not numeric, or there are no more columns than targets.
    ImportError
        If liac-arff, of the extra ``pymtg[mulan]``, is not installed.
    """
    files = _find(Path(stem), with_xml=_checked_count(targets) is None)
    check_seed(seed)
    labels = None if files.xml is None else read_label_names(files.xml)
    tables = [_Labelled.read(path, labels, targets) for path in files.arff]
    if len(tables) == 2 and (tables[0].kinds, tables[0].names) != (tables[1].kinds, tables[1].names):
        raise FileFormatError(f"{files.arff[1]} must declare the same attributes as {files.arff[0]}; it does not")
    rows = split_rows(
        len(tables[0].features), seed, test_size=None if len(tables) == 2 else test_size, val_size=val_size
    )
    first = tables[0]
    layout = TaskLayout.regression(first.names) if labels is None else TaskLayout.binary(labels)
    if len(rows.train) == 0:
        raise InvalidArgumentError(f"{files.arff[0]} leaves no rows to train on")
    scaler = FeatureScaler.fit(first.features[rows.train], [kind for _, kind in first.kinds], sparse=first.sparse)

    figures = target_figures(first.targets[rows.train]) if labels is None else None

    def part(table: _Labelled, at: npt.NDArray[np.int64] | slice) -> ArrayTasks:
        values = table.targets[at] if figures is None else (table.targets[at] - figures[0]) / figures[1]
        return from_arrays(scaler.transform(table.features[at]), values, layout)

    test = part(tables[1], slice(None)) if len(tables) == 2 else part(first, rows.test)
    val = None if rows.val is None else part(first, rows.val)
    kept = (None, None) if figures is None else (tuple(figures[0].tolist()), tuple(figures[1].tolist()))
    return TaskData(Path(stem).name, layout, part(first, rows.train), test, val, *kept)


def _checked_count(targets: Any) -> int | None:
    if targets is None:
        return None
    if isinstance(targets, bool) or not isinstance(targets, numbers.Integral):
        raise InvalidTypeError(f"targets must be a number of columns; got {targets!r}")
    if targets < 1:
        raise InvalidArgumentError(f"targets must be at least 1; got {targets}")
    return int(targets)


def read_label_names(path: Path) -> list[str]:
    """Return the names of all ``<label>`` elements of a Mulan XML file, nested ones too, in the file's order.

    Raises FileFormatError if the file is not XML, has a document type declaration (where entity attacks live), or
    names no label, a label twice or one without a name.
    """
    names: list[str] = []

    def start(element: str, attributes: dict[str, str]) -> None:
        if element.rpartition(" ")[2] == "label":
            names.append(attributes.get("name", ""))

    def refuse(*_: Any) -> None:
        raise FileFormatError(f"{path} must not have a document type declaration")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise FileFormatError(f"{path} is not valid XML: {error}") from None
    if not names:
        raise FileFormatError(f"{path} names no label")
    if not all(names):
        raise FileFormatError(f"{path} has a label without a name")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise FileFormatError(f"{path} names the label {twice[0]!r} twice")
    return names


@dataclass(frozen=True)
class _Files:
    xml: Path | None
    arff: tuple[Path, ...]


def _find(stem: Path, *, with_xml: bool) -> _Files:
    def beside(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    if not stem.name:
        raise InvalidArgumentError(f"stem must end in a file's name without its ending; got {str(stem)!r}")
    single, pair = beside(".arff"), (beside("-train.arff"), beside("-test.arff"))
    xml = beside(".xml") if with_xml else None
    if xml is not None and not xml.is_file():
        raise InvalidArgumentError(
            f"stem must have an XML file that names the labels (or give targets, the number of target columns of a "
            f"regression set); there is no file {xml}"
        )
    present = [path for path in pair if path.is_file()]
    if len(present) == 2:
        return _Files(xml, pair)
    if present:
        absent = pair[1] if present[0] == pair[0] else pair[0]
        raise InvalidArgumentError(f"stem must have a training and a test file; there is no file {absent}")
    if single.is_file():
        return _Files(xml, (single,))
    raise InvalidArgumentError(f"stem must have ARFF files; there is neither {pair[0]} with {pair[1]}, nor {single}")


@dataclass(frozen=True)
class _Labelled:
    """A table whose label columns have been told from its features."""

    features: npt.NDArray[np.floating[Any]]
    targets: npt.NDArray[Any]
    names: tuple[str, ...]
    kinds: tuple[tuple[str, tuple[str, ...] | None], ...]
    sparse: bool

    @classmethod
    def read(cls, path: Path, labels: list[str] | None, count: int | None) -> _Labelled:
        """Read a file whose `labels` are named, or whose last `count` columns are regression targets."""
        table = read_arff(path)
        width = len(table.names)
        columns = list(range(max(width - (count or 0), 0), width))
        if labels is not None:
            columns = _label_columns(path, table, labels)
        rest = np.setdiff1d(np.arange(width), columns)
        if len(rest) == 0:
            what = f"{count} targets" if labels is None else f"{len(labels)} labels"
            raise FileFormatError(f"{path} has no feature beside its {what}; it has {width} columns")
        features = table.values[:, rest]
        _check_finite(path, features, [table.names[c] for c in rest])
        targets = _numbers(path, table, columns) if labels is None else _targets(path, table, columns)
        names = tuple(table.names[c] for c in columns) if labels is None else tuple(labels)
        return cls(features, targets, names, tuple((table.names[c], table.nominal[c]) for c in rest), table.sparse)


def _check_finite(path: Path, features: npt.NDArray[np.floating[Any]], names: list[str], what: str = "feature") -> None:
    large = np.abs(features) > np.finfo(np.float32).max
    if large.any():
        row, column = np.argwhere(large)[0]
        raise FileFormatError(f"{path}: {what} {names[column]!r} is infinite, or too large for float32, in row {row}")


def _label_columns(path: Path, table: Table, labels: list[str]) -> list[int]:
    position = {name: column for column, name in enumerate(table.names)}
    columns = []
    for label in labels:
        column = position.get(label, position.get(unescaped(label)))  # some XML files keep the ARFF file's escapes
        if column is None:
            raise FileFormatError(f"{path} has no attribute for the label {label!r} of the XML file")
        columns.append(column)
    return columns


def _numbers(path: Path, table: Table, columns: list[int]) -> npt.NDArray[np.float64]:
    """Return regression targets, NaN where missing."""
    nominal = next((column for column in columns if table.nominal[column] is not None), None)
    if nominal is not None:
        raise FileFormatError(f"{path}: target {table.names[nominal]!r} must be numeric; it is nominal")
    values = table.values[:, columns].astype(np.float64)
    _check_finite(path, values, [table.names[c] for c in columns], "target")
    return values


def _targets(path: Path, table: Table, columns: list[int]) -> npt.NDArray[np.integer[Any]]:
    labels = table.values[:, columns]
    for task, column in enumerate(columns):
        declared = table.nominal[column]
        if declared is not None:
            known = ~np.isnan(labels[:, task])
            codes = labels[known, task].astype(np.int64)
            labels[known, task] = _as_numbers(declared)[codes]
    wrong = ~np.isnan(labels) & (labels != 0) & (labels != 1)
    if wrong.any():
        row, task = np.argwhere(wrong)[0]
        column = columns[task]
        declared = table.nominal[column]
        found = declared[int(table.values[row, column])] if declared else f"{labels[row, task]:g}"
        raise FileFormatError(
            f"{path}: label {table.names[column]!r} must be 0 or 1 (targets=N reads regression sets); "
            f"row {row} holds {found}"
        )
    missing = np.isnan(labels)
    if not missing.any():
        return labels.astype(np.uint8)
    return np.where(missing, IGNORE_INDEX, labels).astype(np.int32)


def _as_numbers(declared: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return the declared values as numbers; those that are not 0 or 1 as infinity, which no label may be."""
    number = {"0": 0.0, "1": 1.0}
    return np.array([number.get(value, np.inf) for value in declared])
