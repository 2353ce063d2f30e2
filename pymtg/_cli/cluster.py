"""``pymtg cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pymtg._cli import options as opt
from pymtg._cli.errors import CommandError, one_line
from pymtg._counting import counted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pymtg.datamap import DataMap

__all__ = ["cluster"]

_NUMPY_MAGIC = b"\x93NUMPY"


def cluster(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A data map (data_map.safetensors), or a Gram matrix [tasks, tasks] (NumPy's .npy)."
        ),
    ],
    groups: opt.Groups = "3",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", parser=opt.place("--out", "file"), help="Write the groups there as JSON."
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option("--names", metavar="A,B,...|@FILE", help="Names of a Gram's tasks, or a file with one a line."),
    ] = None,
    mode: opt.Mode = "kmeans-fuzzified",
    fuzzifier: opt.Fuzzifier = 1.07,
    n_init: Annotated[int, typer.Option("--n-init", min=1, help="Starts of k-means, of which the best counts.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the starts.")] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No table: write the file, report errors and warnings only.")
    ] = False,
) -> None:
    """Group tasks by a saved data map or Gram matrix."""
    from pymtg.groups import cluster_tasks

    count = opt.group_count(groups)
    matrix_or_map, task_names = _read(source, names)
    found = cluster_tasks(
        matrix_or_map,
        count,
        task_names=task_names,
        mode=opt.choice("--mode", mode, opt.MODES),
        fuzzifier=fuzzifier,
        n_init=n_init,
        random_state=seed,
    )
    if out is not None:
        _save(out, found.to_dict())
    if not quiet:
        from pymtg._cli.tables import print_groups, print_pairs
        from pymtg.report import GroupTable

        table = GroupTable.of(found)
        print_groups(table, f"{counted(len(table.names), 'task')} in {counted(table.num_groups, 'group')}")
        print_pairs("quality", table.quality)


def _save(out: Path, content: dict[str, Any]) -> None:
    from pymtg.report import check_writable, save_json

    try:
        check_writable(out.parent)
        save_json(out, content)
    except OSError as error:
        raise CommandError(f"--out must be a file that can be written; {one_line(error)}") from None


def _read(source: Path, names: str | None) -> tuple[DataMap | npt.NDArray[np.float64], list[str] | None]:
    """Return what the file holds and the tasks' names where it has none itself; its first bytes tell what it is."""
    with source.open("rb") as file:
        is_array = file.read(len(_NUMPY_MAGIC)) == _NUMPY_MAGIC
    if is_array:
        gram = _read_gram(source)
        return gram, _read_names(names, len(gram))
    if names is not None:
        raise CommandError(f"--names is for a Gram matrix; {source} is read as a data map, which names its tasks")
    from pymtg.datamap import DataMap

    return DataMap.load(source), None


def _read_gram(source: Path) -> npt.NDArray[np.float64]:
    import numpy as np

    try:
        gram = np.load(source, allow_pickle=False)
    except (ValueError, EOFError) as error:  # truncated, or an array of Python objects
        raise CommandError(f"{source} is not a Gram matrix that can be read: {one_line(error)}") from None
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.dtype.kind not in "iuf":
        raise CommandError(f"a Gram matrix must be [tasks, tasks] numbers; {source} holds {gram.dtype} {gram.shape}")
    return np.asarray(gram, dtype=np.float64)


def _read_names(words: str | None, count: int) -> list[str] | None:
    if words is None:
        return None
    if words.startswith("@"):
        try:
            text = Path(words[1:]).read_text(encoding="utf-8-sig")  # an editor's byte order mark is part of no name
            names = [line.strip() for line in text.splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise CommandError(f"--names must be a text file in UTF-8; {words[1:]} is not") from None
    else:
        names = [word.strip() for word in words.split(",")]
    if "" in names:
        raise CommandError(f"--names must not hold an empty name; got {words!r}")
    if len(names) != count:
        raise CommandError(f"--names must have one name per task of the Gram matrix ({count}); got {len(names)}")
    return names
