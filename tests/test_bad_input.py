"""Bad input, each kind on each backend: the type, a message with argument, rule and value, and an untouched map."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import (
    BackendError,
    FileFormatError,
    InvalidArgumentError,
    InvalidTypeError,
    MapMemoryError,
    MissingLabelError,
    PymtgError,
    SampleIdError,
)
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy

LAYOUT = TaskLayout(["digit", "odd"], [10, 1])
GOOD = {
    "logits": torch.zeros(4, 11),
    "targets": torch.tensor([[3, 1], [9, 0], [0, 1], [5, 0]]),
    "sample_ids": torch.tensor([0, 5, 2, 2]),
}
TARGETS, IDS = GOOD["targets"], GOOD["sample_ids"]


def changed(tensor: torch.Tensor, at: Any, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "id too large": ({"sample_ids": changed(IDS, 1, 6)}, SampleIdError, r"sample_ids must be 0..5 .* row 1 holds 6"),
    "id negative": ({"sample_ids": changed(IDS, 2, -1)}, SampleIdError, r"sample_ids must be 0..5 .* row 2 holds -1"),
    "id huge": ({"sample_ids": changed(IDS, 3, 2**62)}, SampleIdError, f"row 3 holds {2**62}"),
    "id int32": ({"sample_ids": changed(IDS, 0, 77).int()}, SampleIdError, "row 0 holds 77"),
    "ids float": (
        {"sample_ids": IDS.float()},
        InvalidTypeError,
        "sample_ids must have one of the dtypes int64, int32; got torch.float32",
    ),
    "ids bool": ({"sample_ids": IDS > 0}, InvalidTypeError, "sample_ids must have .* got torch.bool"),
    "ids sparse": ({"sample_ids": IDS.to_sparse()}, InvalidTypeError, "sample_ids must be a dense .*sparse_coo"),
    "ids a list": ({"sample_ids": IDS.tolist()}, InvalidTypeError, "sample_ids must be a tensor; got list"),
    "ids too short": (
        {"sample_ids": IDS[:3]},
        InvalidArgumentError,
        r"sample_ids must be \[4\], one per row; got \[3\]",
    ),
    "ids 2-D": ({"sample_ids": IDS[:, None]}, InvalidArgumentError, r"sample_ids must be \[4\].* got \[4, 1\]"),
    "ids absent": ({"sample_ids": None}, InvalidArgumentError, "sample_ids must be given with a data map; got None"),
    "ids elsewhere": (
        {"sample_ids": IDS.to("meta")},
        InvalidArgumentError,
        "sample_ids must be on cpu; they are on meta",
    ),
    "label too large": (
        {"targets": changed(TARGETS, (1, 0), 10)},
        InvalidArgumentError,
        "targets must be 0..9 or ignore_index for task 'digit'; row 1, column 0 holds 10",
    ),
    "label of a binary task": (
        {"targets": changed(TARGETS, (2, 1), 2)},
        InvalidArgumentError,
        "targets must be 0..1 .* task 'odd'; row 2, column 1 holds 2",
    ),
    "label negative": ({"targets": changed(TARGETS, (3, 1), -1)}, InvalidArgumentError, "row 3, column 1 holds -1"),
    "label int8": (
        {"targets": changed(TARGETS, (3, 1), -1).to(torch.int8)},
        InvalidArgumentError,
        "row 3, column 1 holds -1",
    ),
    "label uint8": (
        {"targets": changed(TARGETS, (3, 0), 200).to(torch.uint8)},
        InvalidArgumentError,
        "row 3, column 0 holds 200",
    ),
    "label int32": (
        {"targets": changed(TARGETS, (0, 0), 2**31 - 1).int()},
        InvalidArgumentError,
        f"row 0, column 0 holds {2**31 - 1}",
    ),
    "label huge": (
        {"targets": changed(TARGETS, (0, 0), 2**40 + 3)},
        InvalidArgumentError,
        f"row 0, column 0 holds {2**40 + 3}",
    ),
    "label missing": (
        {"targets": changed(TARGETS, (2, 1), -100)},
        MissingLabelError,
        r"targets miss the label of task 'odd' in row 2.*DataMap\(..., missing=True\)",
    ),
    "targets float": (
        {"targets": TARGETS.float()},
        InvalidTypeError,
        "targets must have one of the dtypes int64.*; got torch.float32",
    ),
    "targets a list": ({"targets": TARGETS.tolist()}, InvalidTypeError, "targets must be a tensor; got list"),
    "targets sparse": ({"targets": TARGETS.to_sparse()}, InvalidTypeError, "targets must be a dense .*sparse_coo"),
    "targets 1-D": ({"targets": TARGETS[:, 0]}, InvalidArgumentError, r"targets must be \[4, 2\].*got \[4\]"),
    "targets too wide": (
        {"targets": torch.zeros(4, 3).long()},
        InvalidArgumentError,
        r"targets must be \[4, 2\].*got \[4, 3\]",
    ),
    "targets too short": ({"targets": TARGETS[:3]}, InvalidArgumentError, r"targets must be \[4, 2\].*got \[3, 2\]"),
    "targets elsewhere": (
        {"targets": TARGETS.to("meta")},
        InvalidArgumentError,
        "targets must be on the logits' device cpu; they are on meta",
    ),
    "logits too wide": (
        {"logits": torch.zeros(4, 12)},
        InvalidArgumentError,
        r"logits must be \[B, 11\] for this layout; got \[4, 12\]",
    ),
    "logits 1-D": ({"logits": torch.zeros(11)}, InvalidArgumentError, r"logits must be \[B, 11\].*got \[11\]"),
    "logits 3-D": (
        {"logits": torch.zeros(2, 2, 11)},
        InvalidArgumentError,
        r"logits must be \[B, 11\].*got \[2, 2, 11\]",
    ),
    "logits sparse": (
        {"logits": torch.zeros(4, 11).to_sparse()},
        InvalidTypeError,
        r"logits must be a dense \(strided\) tensor; got torch.sparse_coo",
    ),
    "logits integer": (
        {"logits": torch.zeros(4, 11).long()},
        InvalidTypeError,
        "logits must have one of the dtypes float32, float64, .*got torch.int64",
    ),
    "logits complex": ({"logits": torch.zeros(4, 11) * 1j}, InvalidTypeError, "got torch.complex64"),
    "logits an array": (
        {"logits": torch.zeros(4, 11).numpy()},
        InvalidTypeError,
        "logits must be a tensor; got ndarray",
    ),
    "layout a list": ({"layout": [10, 1]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
    "other layout": (
        {"layout": TaskLayout(["digit", "even"], [10, 1])},
        InvalidArgumentError,
        "data_map must have the layout of the loss; theirs differ in names or weights",
    ),
    "other weights": (
        {"layout": TaskLayout(["digit", "odd"], [10, 1], [None, 2])},
        InvalidArgumentError,
        "differ in names or weights",
    ),
    "other classes": (
        {"layout": TaskLayout(["digit", "odd"], [9, 2])},
        InvalidArgumentError,
        r"it has 2 tasks \(11 logits\)",
    ),
    "ignore_index float": ({"ignore_index": -100.0}, InvalidTypeError, "ignore_index must be an integer; got -100.0"),
    "ignore_index bool": ({"ignore_index": True}, InvalidTypeError, "ignore_index must be an integer; got True"),
    "ignore_index huge": ({"ignore_index": 2**70}, InvalidArgumentError, f"ignore_index must fit 64 bits; got {2**70}"),
}


def test_errors_are_also_the_usual_ones() -> None:
    for error, usual in (
        (InvalidArgumentError, ValueError),
        (InvalidTypeError, TypeError),
        (SampleIdError, IndexError),
        (MissingLabelError, ValueError),
        (FileFormatError, ValueError),
        (BackendError, RuntimeError),
        (MapMemoryError, MemoryError),
    ):
        assert issubclass(error, PymtgError)
        assert issubclass(error, usual)


def a_map() -> DataMap:
    data_map = DataMap(6, LAYOUT)
    data_map.update(torch.full((3, 2), 0.25), torch.tensor([0, 2, 2]))
    return data_map


def assert_untouched(data_map: DataMap, before: DataMap) -> None:
    for ours, theirs in zip(data_map.state, before.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_loss(kind: str, with_gradient: bool, backend: str) -> None:
    change, error, message = BAD[kind]
    data_map = a_map()
    before = copy.deepcopy(data_map)
    arguments = {"layout": LAYOUT, "data_map": data_map, "backend": backend} | GOOD | change
    logits = arguments["logits"]
    if with_gradient and isinstance(logits, torch.Tensor) and logits.dtype == torch.float32:
        arguments["logits"] = logits.clone().requires_grad_()
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        with pytest.raises(error, match=f"(?s){message}"):
            function(**arguments)
        assert_untouched(data_map, before)
    # What was wrong with it: the same call without the change is taken.
    multitask_cross_entropy(**{"layout": LAYOUT, "data_map": data_map, "backend": backend} | GOOD)
    assert int(data_map.count.sum()) == 6 + 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_last_label_of_many(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    """Nothing of the batch is recorded, however late in it the bad label stands."""
    layout = TaskLayout.binary([f"task{t}" for t in range(70)])
    for rows in (1, 33, 2000):
        targets = torch.randint(2, (rows, 70), generator=generator)
        targets[-1, -1] = 2
        data_map = DataMap(rows, layout)
        logits = torch.zeros(rows, 70, dtype=dtype)
        with pytest.raises(InvalidArgumentError, match=f"task 'task69'; row {rows - 1}, column 69 holds 2"):
            multitask_cross_entropy(
                logits, targets, layout, data_map=data_map, sample_ids=torch.arange(rows), backend=backend
            )
        assert not any(tensor.any() for tensor in data_map.state)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 1.0], InvalidTypeError, "task_weights must be a floating-point tensor; got list"),
        (torch.ones(2).long(), InvalidTypeError, "task_weights must be a floating-point tensor; got torch.int64"),
        (torch.ones(2).to_sparse(), InvalidTypeError, "task_weights must be a dense .* got torch.sparse_coo"),
        (torch.ones(3), InvalidArgumentError, r"task_weights must be \[2\]; got \[3\]"),
        (torch.ones(2, requires_grad=True), InvalidArgumentError, "task_weights must not require a gradient"),
        (torch.ones(2, device="meta"), InvalidArgumentError, "task_weights must be on cpu; they are on meta"),
    ],
)
def test_task_weights(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_multitask_cross_entropy(GOOD["logits"], TARGETS, LAYOUT, weights)


def test_map_elsewhere_or_no_map(backend: str) -> None:
    arguments = {"layout": LAYOUT, "backend": backend} | GOOD
    with pytest.raises(InvalidArgumentError, match="data_map must be on the logits' device cpu; it is on meta"):
        multitask_cross_entropy(**arguments, data_map=DataMap(6, LAYOUT, device="meta"))
    with pytest.raises(InvalidTypeError, match="data_map must be a DataMap; got dict"):
        multitask_cross_entropy(**arguments, data_map={})


def test_odd_but_good_batches(backend: str) -> None:
    """An empty batch, one row, one task, one sample, a task without a label, a batch without any."""
    layout = TaskLayout(["only"], [3])
    data_map = DataMap(1, layout, missing=True)
    for rows, label, count in ((0, 0, 0), (1, 2, 1), (1, -100, 1), (5, -100, 1), (3, 0, 4)):
        logits = torch.zeros(rows, 3, requires_grad=True)
        loss = MultiTaskLoss(layout, data_map, backend=backend)
        total = loss(logits, torch.full((rows, 1), label), torch.zeros(rows, dtype=torch.long))
        total.backward()
        torch.testing.assert_close(total.item(), 0.0 if rows == 0 or label < 0 else 1.0986123, rtol=1e-6, atol=0)
        assert logits.grad.shape == (rows, 3)
        assert bool(logits.grad.any()) == (rows > 0 and label >= 0)
        assert data_map.count.item() == count
    partly = TaskLayout(["there", "absent"], [1, 2])
    losses = multitask_cross_entropy(torch.zeros(2, 3), torch.tensor([[1, -100], [0, -100]]), partly, backend=backend)
    torch.testing.assert_close(losses, torch.tensor([0.6931472, 0.0]))


def test_backend_that_does_not_serve() -> None:
    layout = TaskLayout.binary(["a"])
    logits, targets = torch.zeros(1, 1, device="meta"), torch.zeros(1, 1, device="meta").long()
    with pytest.raises(BackendError, match="backend 'cpp' does not serve tensors on meta"):
        multitask_cross_entropy(logits, targets, layout, backend="cpp")
