"""Writing safetensors files whose bytes follow from what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    what: str,
    named: str | os.PathLike[str],
    rest: str = "",
) -> None:
    """Write contiguous tensors and metadata; an OSError says that `what` could not be written to `named`, and why."""
    import safetensors
    import safetensors.torch

    try:
        safetensors.torch.save_file(dict(tensors), path, dict(metadata))
        sort_metadata(path)
    except (safetensors.SafetensorError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(f"{what} could not be written to {os.fspath(named)}: {why}{rest}") from error


def sort_metadata(path: str | os.PathLike[str]) -> None:
    """Put the entries of a safetensors file's metadata into the order of their keys, in place.

    safetensors writes them in the order of a hash map that is seeded anew each time, the rest in one order. A file is 8
    bytes, the length of the header, the header, JSON with spaces at its end, and the tensors. In another order
    the same entries are as long, so that all else stays where it is.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:  # should JSON be written otherwise one day, the file is good as it is
            file.seek(8)
            file.write(ordered.ljust(size))
