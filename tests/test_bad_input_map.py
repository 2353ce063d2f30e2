"""Bad input to a data map itself: the type, a message with argument, rule and value, and an untouched map."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from pymtg import DataMap, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MapMemoryError, MissingLabelError, SampleIdError

LAYOUT = TaskLayout(["digit", "odd"], [10, 1])
P = torch.full((2, 2), 0.5)
AT = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((P.tolist(), AT), InvalidTypeError, "probabilities must be a floating-point tensor; got list"),
        ((P.long(), AT), InvalidTypeError, "probabilities must be a floating-point tensor; got dtype torch.int64"),
        ((P[:, :1], AT), InvalidArgumentError, r"probabilities must be \[B, 2\]; got \[2, 1\]"),
        ((P[0], AT), InvalidArgumentError, r"probabilities must be \[B, 2\]; got \[2\]"),
        ((P.to("meta"), AT), InvalidArgumentError, "probabilities must be on the map's device cpu; they are on meta"),
        ((P + 0.75, AT), InvalidArgumentError, r"probabilities must lie in \[0, 1\]; got 1.25"),
        ((P - 0.75, AT), InvalidArgumentError, r"probabilities must lie in \[0, 1\]; got -0.25"),
        ((P, AT[:1]), InvalidArgumentError, r"sample_ids must be \[2\], one per row; got \[1\]"),
        ((P, AT.double()), InvalidTypeError, "sample_ids must have one of the dtypes"),
        ((P, AT + 5), SampleIdError, r"sample_ids must be 0..5 .*row 1 holds 6"),
        ((P, -AT), SampleIdError, "row 1 holds -1"),
        ((P, AT, P), InvalidTypeError, "correct must be a bool tensor; got dtype torch.float32"),
        ((P, AT, (P > 0)[:1]), InvalidArgumentError, r"correct must be \[2, 2\] on cpu; got \[1, 2\]"),
        ((P.to_sparse(), AT), InvalidTypeError, "probabilities must be a dense .*sparse_coo"),
        ((P, AT, (P > 0).to_sparse()), InvalidTypeError, "correct must be a dense .*sparse_coo"),
        ((P, AT, P > 0, (P > 0).to_sparse()), InvalidTypeError, "valid must be a dense .*sparse_coo"),
        ((P, AT, P > 0, 1), InvalidTypeError, "valid must be a bool tensor; got int"),
        ((P, AT, P > 0, (P > 0).T[:1]), InvalidArgumentError, r"valid must be \[2, 2\] on cpu; got \[1, 2\]"),
        ((P, AT, P > 0, P > 1), MissingLabelError, r"build it with DataMap\(..., missing=True\)"),
    ],
)
def test_update(arguments: tuple[Any, ...], error: type[Exception], message: str, backend: str) -> None:
    data_map = DataMap(6, LAYOUT)
    data_map.update(torch.full((3, 2), 0.25), torch.tensor([0, 2, 2]))
    before = copy.deepcopy(data_map)
    names = ("probabilities", "sample_ids", "correct", "valid")
    with pytest.raises(error, match=message):
        data_map.update(**dict(zip(names, arguments, strict=False)), backend=backend)
    for ours, theirs in zip(data_map.state, before.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, InvalidArgumentError, "num_samples must be at least 1; got 0"),
        ({"num_samples": 3.0}, InvalidTypeError, "num_samples must be an integer; got 3.0"),
        ({"num_samples": True}, InvalidTypeError, "num_samples must be an integer; got True"),
        ({"layout": ["a"]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
        ({"ddof": 2}, InvalidArgumentError, "ddof must be 0 or 1; got 2"),
        ({"ddof": "1"}, InvalidArgumentError, "ddof must be 0 or 1; got '1'"),
    ],
)
def test_data_map(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DataMap(**{"num_samples": 3, "layout": LAYOUT} | arguments)


@pytest.mark.parametrize("num_samples", [10**15, 10**18, 10**19])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("storage", [None, "cpu"])
def test_a_map_that_no_memory_holds(num_samples: int, missing: bool, storage: str | None, tmp_path: Path) -> None:
    needed = 8 * 2 * num_samples + 4 * num_samples + 8  # of the words, of two int16 counts or an int32, of the rest
    message = f"num_samples must be so few .* memory of cpu; got {num_samples}, .* 2 tasks need {needed:,} bytes"
    with pytest.raises(MapMemoryError, match=message):
        DataMap(num_samples, LAYOUT, missing=missing, storage=storage, snapshots="disk", directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_errors_of_an_allocation_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        def zeros(*sizes: Any, **options: Any) -> torch.Tensor:
            raise error

        monkeypatch.setattr(torch, "zeros", zeros)

    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MapMemoryError, match="got 3, which with 2 tasks need 68 bytes"):
        DataMap(3, LAYOUT)
    fail(RuntimeError("the device is lost"))
    with pytest.raises(RuntimeError, match="the device is lost"):
        DataMap(3, LAYOUT)
