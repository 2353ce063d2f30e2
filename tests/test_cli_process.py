"""The command line as a process: what it imports and needs installed, streams that are closed, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _cli_runs import FILES, STG, assert_ctrl_c_ends_it, python_m, tiny_run

from pymtg.cli import main


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("mulan"))


def test_help_does_not_load_what_it_does_not_need():
    code = (
        "import sys; from pymtg.cli import main; main(['stg', '--help'])\n"
        "heavy = {'sklearn', 'matplotlib', 'pandas', 'jinja2', 'scipy', 'pymtg.trainers', 'pymtg._core'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_notebooks_canvas_that_is_not_installed_does_not_matter(tiny, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = python_m(*tiny, "--out", tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(os.listdir(tmp_path)) == FILES


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=["stdin", "stdout", "stderr", "all"])
def test_a_stream_that_is_closed_is_done_without(tiny, tmp_path, closed):
    def close() -> None:
        for number in closed:
            os.close(number)

    done = python_m(*tiny[:-1], "--out", tmp_path, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("report.html" in done.stdout) == (1 not in closed)
    assert set(os.listdir(tmp_path)) == FILES


def test_a_mistake_is_not_told_on_stdout_where_stderr_is_closed():
    done = python_m("cluster", "--frobnicate", preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("blocked", ["typer", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(blocked):
    code = f"import sys; sys.modules[{blocked!r}] = None; from pymtg.cli import main; sys.exit(main(['env']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"pymtg: the command line needs {blocked}: pip install 'pymtg[cli]'\n"


def test_without_matplotlib_stg_says_so_before_it_trains(tmp_path, monkeypatch, capsys):
    from pymtg._cli import errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert main([*STG, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "pymtg stg: this command needs matplotlib: pip install 'pymtg[report]'\n"


def test_ctrl_c_ends_with_130_and_one_line(tmp_path):
    assert_ctrl_c_ends_it(["stg", "--data", "digits"], tmp_path / "out")


def test_the_installed_command_is_this_one():
    script = Path(sys.executable).with_name("pymtg")
    if not script.exists():
        pytest.skip("pymtg is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
