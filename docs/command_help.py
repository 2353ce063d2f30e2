"""Put the commands' help into the site's pages: for ``<!-- help: stg -->`` what ``pymtg stg --help`` prints.

A hook of mkdocs, so that the page is that of the commands as they are.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any
from unittest import mock

from pymtg.cli import main


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the help in place."""
    return re.sub(r"^<!-- help: (.*) -->$", lambda found: _help(found[1].split()), markdown, flags=re.M)


def _help(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), mock.patch.dict(os.environ, COLUMNS="96"):
        code = main([*words, "--help"])
    if code:
        raise ValueError(f"pymtg has no command {' '.join(words)!r}")
    return f"```text\n{out.getvalue().rstrip()}\n```"
