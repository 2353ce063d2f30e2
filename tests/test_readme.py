"""Every Python block of the README runs, each on its own; its commands have the options they show."""

from __future__ import annotations

import re

import pytest
from pages import ROOT, Page

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_the_readme_has_examples():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(number, capsys):
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), {})
    assert capsys.readouterr().out.strip(), "every block prints something"


def test_readme_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = "".join(re.findall(r"```sh\n.*?```\n\n", README.read_text(), flags=re.S))
    assert commands.count("pymtg ") >= 5
    path = tmp_path / "commands.md"
    path.write_text(commands)
    Page(path).run()


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([\w./-]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
