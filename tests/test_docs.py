"""Every page of the documentation runs, shows what its code prints and draws, and leaves no public module out."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import matplotlib as mpl
import pytest
import typer
from command_help import on_page_markdown
from make_pictures import IMAGES, pictures_of
from make_tables import filled
from pages import PAGES, ROOT, Page, same_output

import pymtg
import pymtg.integrations
from pymtg._cli.app import app

BENCHMARKS = {"scale_tasks.png"}  # drawn by benchmarks/
FENCE = re.compile(r"^ *```(\w+)", flags=re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs"))


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # inside Lightning
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text())], ids=name_of)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context({"backend": "agg"}):
        Page(page).run()
    missing = [name for name in pictures_of(page) if name not in BENCHMARKS and not Path(name).is_file()]
    assert not missing, "the page's code draws its pictures"


def test_pictures_are_those_that_are_shown():
    assert {name for page in PAGES for name in pictures_of(page)} == {path.name for path in IMAGES.iterdir()}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    assert filled(page.read_text()) == page.read_text(), "run `make tables`"


def test_no_block_is_passed_over():
    for page in PAGES:
        assert set(FENCE.findall(page.read_text())) <= {"python", "sh", "text", "json", "py"}, page
        for block in re.findall(r"^```py\n(.*?)^```", page.read_text(), flags=re.M | re.S):
            assert block.startswith('--8<-- "examples/'), f"{page}: py is for scripts that test_examples.py runs"


def test_every_page_is_in_the_navigation():
    nav = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    assert nav == {name_of(page) for page in PAGES}


def test_reference_has_every_public_module():
    public = {
        name
        for path, prefix in ((pymtg.__path__, "pymtg."), (pymtg.integrations.__path__, "pymtg.integrations."))
        for _, name, _ in pkgutil.iter_modules(path, prefix)
        if not name.split(".")[-1].startswith("_")
    } - {"pymtg.cli", "pymtg.kernels", "pymtg.integrations"}
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    assert public <= set(re.findall(r"^::: ([\w.]+)$", text, flags=re.M))


def test_functions_named_as_their_modules_are_in_the_reference():
    # The page of the package passes them over: it takes them for the modules.
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    for package in (pymtg.data, pymtg.nets, pymtg.report, pymtg.trainers):
        modules = {name for _, name, _ in pkgutil.iter_modules(package.__path__)}
        for name in modules & set(package.__all__):
            assert f"::: {package.__name__}.{name}.{name}\n" in text


def test_every_command_has_its_help():
    commands = typer.main.get_command(app).commands
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert re.findall(r"<!-- help: (\w+) -->", text) == list(commands)
    assert "--groups" in on_page_markdown("# Page\n\n<!-- help: stg -->\n")


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\nx = 1 / 0\n```", ZeroDivisionError),
        ("```python\nprint('a', 1.0)\n```\n```text\na 1.1\n```", AssertionError),
        ("```python\nprint('a', 1.0)\n```\n```text\nb 1.0\n```", AssertionError),
        ("```sh\npymtg stg --data digits --grops 3 --out runs\n```", AssertionError),
        ("```sh\npymtg stg --data digits --out runs --epochs few\n```", AssertionError),
        ("```sh\nmake everything\n```", AssertionError),
        ("```sh\npip install '.[gpu-of-my-dreams,dreams]'\n```", AssertionError),
        ("```sh\npython examples/none.py\n```", AssertionError),
    ],
)
def test_what_is_wrong_on_a_page_is_found(block, complaint, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# A page\n\n{block}\n")
    with pytest.raises(complaint):
        Page(path).run()


def test_names_are_shared_on_a_page_and_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "page.md"
    path.write_text(
        "```python\nx = 2\n```\n\n```python\nprint(x, 0.501)\n```\n```text\n2   0.5\n```\n\n```text\nz = y²\n```\n"
        "\n```sh\npymtg env  # prints\npymtg stg --data mulan:DIR/yeast --out runs\n```\n"
        "\n```sh\npymtg stg --data digits --epochs 1 --out runs/digits\n"
        "pymtg cluster runs/digits/data_map.safetensors --out groups.json\n```\n"
    )
    Page(path).run()
    assert (tmp_path / "groups.json").is_file()


def test_outputs_are_compared_word_by_word_and_number_by_number():
    assert same_output("a 1 b\n", "a  1.01 b")
    assert not same_output("a 1", "a 1 2")
    assert not same_output("a 1", "a 1.1")
    assert not same_output("True", "False")
