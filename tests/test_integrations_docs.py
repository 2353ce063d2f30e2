"""Every Python block of docs/integrations.md runs, each on its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # inside Lightning
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, capsys):
    exec(compile(BLOCKS[number], f"integrations.md, block {number + 1}", "exec"), {})
    assert capsys.readouterr().out.strip(), "every block prints something"


def test_the_page_has_an_example_of_each():
    for name in ("DataMapCallback", "DataMapMixin", "DataMapTrainer", "DataMapMetric"):
        assert any(name in block for block in BLOCKS), name
