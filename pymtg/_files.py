"""Writing files so that a reader finds the old ones or the new ones, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; at the end sync it and rename it to `path`.

    If anything fails (a full disk, an interruption) the temporary file is removed and `path` is as it was. Of a
    symbolic link the file that it leads to is replaced; what is no file (a device, a pipe) cannot be: an OSError.
    """
    given, path = os.fspath(path), Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
    if path.exists() and not path.is_file():  # a rename would put a file in the place of /dev/null
        raise OSError(errno.EINVAL, "Not a regular file, which is what can be replaced", given)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:  # of the temporary file, whose name says nothing to the caller
        raise type(error)(error.errno, error.strerror, given) from None
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would hide results from the user's colleagues
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def staged(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new directory inside `directory` to write files to; at the end move them all into `directory`.

    Where an error ends it (a full disk, a picture that cannot be drawn) the files that are complete stay in the new
    directory, ``unfinished-...``, so that a long run is not lost; an interruption removes it. Either way the files in
    `directory` are as they were.
    """
    directory = Path(directory)
    stage = Path(tempfile.mkdtemp(dir=directory, prefix="unfinished-"))
    try:
        yield stage
        files = sorted(stage.iterdir())
        for file in files:
            if (directory / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(directory / file.name))
        for file in files:
            os.replace(file, directory / file.name)
    except Exception:
        with contextlib.suppress(OSError):
            os.chmod(stage, 0o777 & ~_umask())  # mkdtemp's 0700 would hide results from the user's colleagues
            stage.rmdir()  # where nothing was complete
        raise
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    stage.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
