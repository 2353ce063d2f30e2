"""Files that are replaced together."""

from __future__ import annotations

import os
import stat

import pytest

from pymtg._files import staged


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
