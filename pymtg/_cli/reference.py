"""A stored run that another one is measured against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymtg._cli.errors import CommandError, one_line

__all__ = ["Reference", "load_reference"]


@dataclass(frozen=True)
class Reference:
    """One method's scores in a stored run, as its metrics.json holds them."""

    source: str
    method: str
    scores: Mapping[str, Any]


def load_reference(word: str, tasks: Sequence[str]) -> Reference:
    """Return the method's scores that ``--reference FILE[:METHOD]`` names; they must hold every one of the tasks.

    Without METHOD it is ``mtl`` where the run has it, or its only one.
    """
    file, method = _split(word)
    scores = _scores(file)
    if method is None:
        method = "mtl" if "mtl" in scores else next(iter(scores)) if len(scores) == 1 else None
    if method is None or method not in scores:
        found = "none was named" if method is None else f"got {method!r}"
        raise CommandError(f"--reference must name one of the methods of {file} ({', '.join(scores)}); {found}")
    held = scores[method].get("tasks") if isinstance(scores[method], dict) else None
    if not isinstance(held, dict) or not all(isinstance(figures, dict) for figures in held.values()):
        raise CommandError(f"--reference must name a run's metrics.json; {file} has no scores by task")
    absent = next((name for name in tasks if name not in held), None)
    if absent is not None:
        raise CommandError(f"--reference must be a run on the same tasks; {file} has no {absent!r}")
    return Reference(str(file), method, scores[method])


def _split(word: str) -> tuple[Path, str | None]:
    if Path(word).exists() or ":" not in word:
        return Path(word), None
    file, _, method = word.rpartition(":")
    return Path(file), method


def _scores(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CommandError(f"--reference must be a file that can be read; {one_line(error)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"--reference must be a JSON file; {file}: {one_line(error)}") from None
    scores = content.get("scores") if isinstance(content, dict) else None
    if not isinstance(scores, dict) or not scores:
        raise CommandError(f"--reference must name a run's metrics.json; {file} holds no scores")
    return scores
