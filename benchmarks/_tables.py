"""What every table of measured figures needs: results by name, Markdown rows, numbers as the tables write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MISSING = "*not measured*\n"


def rows_to_markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def load(name: str) -> Any | None:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def machine(document: dict[str, Any]) -> str:
    cpu = document["machine_info"]["cpu"]
    first = document["benchmarks"][0]["extra_info"]
    isa, torch = first["instruction_set"], first.get("torch")
    parts = [f"{cpu['brand_raw']}, {cpu['count']} cores, {isa}"] + ([f"torch {torch}"] if torch else [])
    return f"\n{', '.join(parts)}; {document['datetime'][:10]}.\n"


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def times(factor: float | None) -> str:
    return "" if factor is None else f"{factor:.3g}x"


def mb(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
