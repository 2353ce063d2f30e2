"""Files that are replaced together."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pymtg._files import replacing, staged
from pymtg.trainers._epoch_log import EpochLog
from pymtg.trainers.results import EpochRecord


def write(directory, *names, error=None):
    """Stage files that hold "new", then fail."""
    with staged(directory) as stage:
        for name in names:
            (stage / name).write_text("new")
        if error is not None:
            raise error


def test_files_move_in_together_and_the_stage_is_gone(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "mine").write_text("mine")
    with staged(tmp_path) as stage:
        (stage / "a").write_text("new")
        (stage / "b").write_text("b")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == {
        "a": "new",
        "b": "b",
        "mine": "mine",
    }


def test_an_error_leaves_what_was_complete_beside_the_old_files(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, "a", error=ZeroDivisionError())
    assert (tmp_path / "a").read_text() == "old"
    (left,) = tmp_path.glob("unfinished-*")
    assert (left / "a").read_text() == "new"
    assert stat.S_IMODE(left.stat().st_mode) & 0o700 == 0o700


def test_an_error_before_the_first_file_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, error=ZeroDivisionError())
    assert not os.listdir(tmp_path)


def test_an_interruption_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "a", error=KeyboardInterrupt())
    assert not os.listdir(tmp_path)


def test_a_directory_in_the_place_of_a_file_is_found_before_any_is_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write(tmp_path, "a", "b")
    assert caught.value.filename == str(tmp_path / "b")
    assert (tmp_path / "a").read_text() == "old"


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "real").read_text() == "new"
    assert os.listdir(tmp_path / "elsewhere") == ["real"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"Not a regular file.*pipe"), replacing(tmp_path / "pipe"):
        pytest.fail("entered")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_log_goes_to_a_pipe_as_it_is():
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as reader:
        with EpochLog(Path(f"/dev/fd/{writing}")) as log:
            log.write("joint", EpochRecord(1, 0.5, (0.5,), None, None, 1.0), 2, 0.0)
        os.close(writing)
        assert json.loads(reader.read())["stage"] == "joint"
