"""Run what stands on a page of the documentation: its Python from top to bottom, its commands as far as they are quick.

- ``python`` blocks run in order and share their names.
- ``sh`` blocks: ``pymtg`` commands run that train on the digits for three epochs at most, or do not train; the words of
  the others are checked against the command line. Targets of make, extras of pip and scripts have to exist.
- A ``text`` block that follows a ``python`` block directly is what that block prints: the same words, numbers within 2%
  or 0.02.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from pymtg.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_MOST_EPOCHS = 3
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_Check = Callable[[Example], str | None]


class Page:
    """One page: a Markdown file whose examples run in the current directory.

    Parameters
    ----------
    path
        The file.

    Attributes
    ----------
    document : sybil.Document
        The page with the regions that are run or compared.
    printed : str
        What the last Python block printed.
    """

    def __init__(self, path: Path) -> None:
        self.printed = ""
        self._end = -1
        self._run_python = PythonEvaluator()
        blocks: dict[str, _Check] = {"python": self._python, "sh": self._shell, "text": self._output}
        self.document = Document.parse(str(path), *(CodeBlockParser(kind, run) for kind, run in blocks.items()))
        self.document.namespace["__name__"] = path.stem.replace("-", "_")

    def run(self) -> None:
        """Run all blocks; the first that fails raises."""
        for example in self.document.examples():
            example.evaluate()

    def _python(self, example: Example) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self._run_python(example)
        self.printed, self._end = out.getvalue(), example.end

    def _output(self, example: Example) -> str | None:
        if not 0 <= self._end <= example.start or self.document.text[self._end : example.start].strip():
            return None  # a drawing or an equation
        return None if same_output(example.parsed, self.printed) else f"the block above prints\n{self.printed}"

    def _shell(self, example: Example) -> str | None:
        for line in example.parsed.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            found = _run_command(words) if words else None
            if found is not None:
                return f"{line}: {found}"
        return None


def same_output(shown: str, printed: str) -> bool:
    """Whether both are the same words, white space aside, with numbers that differ by at most 2% or 0.02."""
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in (shown, printed)]
    ours, theirs = ([float(n) for n in _NUMBER.findall(text)] for text in (shown, printed))
    close = (abs(a - b) <= max(0.02, 0.02 * abs(b)) for a, b in zip(ours, theirs, strict=False))
    return words[0] == words[1] and len(ours) == len(theirs) and all(close)


def _run_command(words: list[str]) -> str | None:
    """Run or check one command; returns what is wrong with it."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]  # environment variables
    if words[0] == "make":
        known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
        return f"make has no target {words[1]}" if words[1] not in known else None
    if "install" in words and words[0] == "pip":
        return _check_extras(" ".join(words))
    if words[0] == "torchrun" and "pymtg" in words:
        return _check_words(words[words.index("pymtg") + 1 :])
    scripts = [word for word in words if word.endswith(".py")]
    if scripts and words[0] in ("python", "torchrun"):
        missing = [script for script in scripts if not (ROOT / script).is_file()]
        return f"there is no {missing[0]}" if missing else None
    if words[0] != "pymtg":
        return None
    wrong = _check_words(words[1:])
    return wrong if wrong is not None or not _is_quick(words) else _ended(words[1:])


def _check_extras(line: str) -> str | None:
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M))
    asked = {name.strip() for names in re.findall(r"\[([\w, -]+)\]", line) for name in names.split(",")}
    return f"pymtg has no extra {sorted(asked - known)}" if asked - known else None


def _check_words(words: list[str]) -> str | None:
    """Parse the words of ``pymtg`` without running anything; returns the parser's complaint."""
    import typer

    from pymtg._cli.app import app

    command = typer.main.get_command(app)
    try:
        if words and words[0] in command.commands:  # type: ignore[attr-defined]
            command = command.commands[words[0]]  # type: ignore[attr-defined]
            words = words[1:]
        command.make_context("pymtg", list(words))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return None


def _is_quick(words: list[str]) -> bool:
    """Whether a command needs nothing that is not here, and seconds at most."""
    if words[1:2] == ["cluster"]:
        return Path(words[2]).exists()
    if "--data" not in words:
        return True
    epochs = words[words.index("--epochs") + 1] if "--epochs" in words else "20"
    return words[words.index("--data") + 1] == "digits" and int(epochs) <= _MOST_EPOCHS and words[1] != "compare"


def _ended(words: list[str]) -> str | None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words)
    return f"ends with {code}: {out.getvalue()}" if code else None
