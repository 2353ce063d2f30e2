"""A Mulan set of 6 tasks on which a run takes no time; its names look like HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiny(directory: Path) -> str:
    """Write the set's files there and return what ``--data`` takes."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(240, 6)).round(4)
    labels = (inputs + rng.normal(scale=[0.1, 0.1, 0.5, 0.5, 5, 5], size=inputs.shape) > 0).astype(int)
    head = [*(f"@attribute x{i} numeric" for i in range(6)), *(f"@attribute <y{i}> {{0,1}}" for i in range(6))]
    rows = [",".join(map(str, [*x.tolist(), *y.tolist()])) for x, y in zip(inputs, labels, strict=True)]
    (directory / "tiny.arff").write_text("\n".join(["@relation t", *head, "@data", *rows, ""]))
    named = "".join(f'<label name="&lt;y{i}&gt;"></label>' for i in range(6))
    (directory / "tiny.xml").write_text(f'<?xml version="1.0"?><labels>{named}</labels>')
    return f"mulan:{directory / 'tiny'}"
