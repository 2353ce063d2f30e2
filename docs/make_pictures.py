"""Draw the pictures of the documentation again: run the pages that show one, and keep what their code drew.

``python docs/make_pictures.py`` (`make pictures`) runs every page; with names, those pages alone. A page's code saves a
picture under the name by which the page shows it from ``images/``. (``scale_tasks.png`` comes from benchmarks/.)
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from pages import PAGES, ROOT, Page

IMAGES = ROOT / "docs" / "images"
_SHOWN = re.compile(r"!\[[^\]]*\]\((?:[\w./]*/)?images/([\w.-]+)\)")


def pictures_of(path: Path) -> list[str]:
    """Return the names of the pictures that a page shows."""
    return _SHOWN.findall(path.read_text())


def make_pictures(path: Path) -> list[str]:
    """Run a page and keep the pictures that its code draws; returns their names."""
    shown = pictures_of(path)
    if not shown:
        return []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            Page(path).run()
            drawn = [name for name in shown if Path(name).is_file()]
            for name in drawn:
                shutil.copyfile(name, IMAGES / name)
        finally:
            os.chdir(before)
    return drawn


if __name__ == "__main__":
    for page in PAGES:
        if not sys.argv[1:] or page.stem in sys.argv[1:]:
            for name in make_pictures(page):
                print(f"docs/images/{name}  from  {page.relative_to(ROOT)}")
