"""Bad labels, ids and probabilities: noted, nothing written, NaN for the losses, raised when the host reads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, MissingLabelError, PymtgError, SampleIdError
from pymtg.functional import (
    linear_multitask_cross_entropy,
    multitask_cross_entropy,
    weighted_linear_multitask_cross_entropy,
)

LAYOUT = TaskLayout(["digit", "odd", "many"], [10, 1, 40])


def batch(rows: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.stack([torch.arange(rows) % n for n in (10, 2, 40)], 1)
    return torch.zeros(rows, LAYOUT.num_logits), targets, torch.arange(rows)


def bad(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    logits, targets, ids = batch()
    if kind == "id":
        ids[65] = 70
    elif kind == "negative id":
        ids[2] = -1
    else:
        targets[66, 1] = {"label": 2, "negative label": -3, "missing": -100}[kind]
    return logits, targets, ids


CASES: dict[str, tuple[type[PymtgError], str]] = {
    "label": (InvalidArgumentError, r"targets must be 0..1 .* task 'odd'; row 66, column 1 holds 2"),
    "negative label": (InvalidArgumentError, "row 66, column 1 holds -3"),
    "missing": (MissingLabelError, "targets miss the label of task 'odd' in row 66"),
    "id": (SampleIdError, r"sample_ids must be 0..69 .* row 65 holds 70"),
    "negative id": (SampleIdError, "row 2 holds -1"),
}


@pytest.mark.parametrize("kind", CASES)
def test_raised_where_the_map_is_read(kind: str) -> None:
    error, message = CASES[kind]
    data_map = DataMap(70, LAYOUT)
    logits, targets, ids = bad(kind)
    logits.requires_grad_()
    losses = multitask_cross_entropy(logits, targets, LAYOUT, data_map=data_map, sample_ids=ids, backend="triton")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isnan().tolist() == ([True] * 3 if "id" in kind else [False, True, False])
    assert bool(gradient.isfinite().all())
    with pytest.raises(error, match=message):
        data_map.mean  # noqa: B018
    row = {"id": 65, "negative id": 2}.get(kind, 66)
    expected = torch.ones(70, dtype=torch.int32).index_fill(0, torch.tensor([row]), 0)
    assert torch.equal(data_map.count[:, 0], expected), "raised once; the other rows are recorded"
    if "label" in kind or kind == "missing":
        assert not gradient[66, 10:11].any()
    assert data_map.num_rejected == 0


@pytest.mark.parametrize("read", ["snapshot", "gram", "state_dict", "num_rejected", "std", "features", "pickle"])
def test_every_read_raises(read: str) -> None:
    data_map = DataMap(70, LAYOUT)
    multitask_cross_entropy(*bad("label")[:2], LAYOUT, data_map=data_map, sample_ids=torch.arange(70), backend="triton")
    reads = {
        "snapshot": lambda: data_map.snapshot(1),
        "pickle": lambda: copy.deepcopy(data_map.state_dict()),
        "gram": data_map.gram,
        "state_dict": data_map.state_dict,
        "features": data_map.features,
    }
    with pytest.raises(InvalidArgumentError, match="holds 2"):
        reads.get(read, lambda: getattr(data_map, read))()
    assert data_map.snapshot_epochs == ()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_of_a_linear_head(kind: str, weighted: bool, compiled: bool) -> None:
    """In chunks too the row alone is left out, compiled or not; with `debug` the map is as it was."""
    torch.compiler.reset()
    error, message = CASES[kind]
    data_map = DataMap(70, LAYOUT)
    _, targets, ids = bad(kind)
    x, weight = torch.zeros(70, 4), torch.zeros(LAYOUT.num_logits, 4, requires_grad=True)

    def step(weight: Tensor) -> tuple[Tensor, Tensor]:
        options = {"data_map": data_map, "sample_ids": ids, "max_columns": 11, "backend": "triton"}
        if weighted:
            total, losses = weighted_linear_multitask_cross_entropy(x, weight, None, targets, LAYOUT, **options)
        else:
            losses = linear_multitask_cross_entropy(x, weight, None, targets, LAYOUT, **options)
            total = losses.sum()
        return total, losses.detach()

    run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
    total, losses = run(weight)
    (gradient,) = torch.autograd.grad(total, weight)
    assert bool(gradient.isfinite().all())
    assert losses.isnan().tolist() == ([True] * 3 if "id" in kind else [False, True, False])
    with pytest.raises(error, match=message):
        data_map.mean  # noqa: B018
    row = {"id": 65, "negative id": 2}.get(kind, 66)
    assert torch.equal(data_map.count[:, 0], torch.ones(70, dtype=torch.int32).index_fill(0, torch.tensor([row]), 0))
    if "label" in kind:
        data_map.reset()
        with pymtg.debug(), pytest.raises(error, match=message):
            step(weight)
        assert not data_map.count.any()


def test_check_errors_and_debug() -> None:
    logits, targets, _ = bad("label")
    assert multitask_cross_entropy(logits, targets, LAYOUT, backend="triton")[1].isnan()
    with pytest.raises(InvalidArgumentError, match="row 66, column 1 holds 2"):
        pymtg.check_errors()
    pymtg.check_errors()
    with pymtg.debug(), pytest.raises(InvalidArgumentError, match="row 66, column 1 holds 2"):
        multitask_cross_entropy(logits, targets, LAYOUT, backend="triton")
    multitask_cross_entropy(logits, targets, LAYOUT, backend="triton")
    with pytest.raises(InvalidArgumentError, match="row 66"):
        pymtg.check_errors()


def test_the_first_fault_stays() -> None:
    for kind in ("label", "negative label"):
        multitask_cross_entropy(*bad(kind)[:2], LAYOUT, backend="triton")
    with pytest.raises(InvalidArgumentError, match="holds 2"):
        pymtg.check_errors()


def test_the_first_of_a_tile_is_named() -> None:
    logits, targets, _ = batch(6)
    targets[5, 1], targets[3, 1], targets[4, 0] = 7, 5, 99
    multitask_cross_entropy(logits, targets, LAYOUT, backend="triton")
    with pytest.raises(InvalidArgumentError, match="row 3, column 1 holds 5"):
        pymtg.check_errors()


def test_a_layout_that_is_gone() -> None:
    def step() -> None:
        layout = TaskLayout.binary(["a"])
        multitask_cross_entropy(torch.zeros(1, 1), torch.tensor([[4]]), layout, backend="triton")

    step()
    with pytest.raises(InvalidArgumentError, match=r"targets held a bad value in row 0, column 0 .*: 4"):
        pymtg.check_errors()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("p", InvalidArgumentError, r"probabilities must lie in \[0, 1\]; row 1, task 'b' held 1.5"),
        ("id", SampleIdError, "row 2 holds 4"),
        ("valid", MissingLabelError, "targets miss the label of task 'a' in row 0"),
    ],
)
def test_update(change: str, error: type[PymtgError], message: str) -> None:
    data_map = DataMap(4, TaskLayout.binary(["a", "b"]))
    kept = {"p": {3, 0}, "id": {3, 1}, "valid": {1, 0}}[change]
    p, ids, valid = torch.full((3, 2), 0.5), torch.tensor([3, 1, 0]), torch.ones(3, 2, dtype=torch.bool)
    if change == "p":
        p[1, 1] = 1.5
    elif change == "id":
        ids[2] = 4
    else:
        valid[0, 0] = False
    data_map.update(p, ids, valid=valid, backend="triton")
    with pytest.raises(error, match=message):
        data_map.snapshot(1)
    assert {sample for sample in range(4) if data_map.count[sample, 0]} == kept
    with pymtg.debug(), pytest.raises(error, match=message):
        data_map.update(p, ids, valid=valid, backend="triton")


def test_the_module_says_so_too() -> None:
    """A fault shows in the loss that a loop prints, whatever the weights."""
    logits, targets, ids = bad("label")
    loss = MultiTaskLoss(LAYOUT, DataMap(70, LAYOUT), [1.0, 0.5, 2.0], backend="triton")
    assert loss(logits, targets, ids).isnan()
    with pytest.raises(InvalidArgumentError):
        pymtg.check_errors()


@pytest.mark.parametrize("per_task", [False, True])
def test_a_soft_label_of_a_hooked_loss_is_raised_where_the_map_is_read(per_task: bool) -> None:
    layout = TaskLayout.binary(["even", "odd"])
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.5], [torch.nan, 1.0]])
    losses = {"even": nn.BCEWithLogitsLoss(), "odd": nn.BCEWithLogitsLoss()}
    whole = nn.BCEWithLogitsLoss()
    pymtg.set_backend("triton")
    try:
        with pymtg.record(losses if per_task else whole, layout, num_samples=4, missing=True) as recorder:
            recorder.ids(torch.arange(4))
            logits = torch.zeros(4, 2, requires_grad=True)
            if per_task:
                for t, loss in enumerate(losses.values()):
                    loss(logits[:, t], targets[:, t])
            else:
                whole(logits, targets)
            with pytest.raises(InvalidArgumentError, match=r"task 'odd' .* row 2, column 1 of an earlier batch was no"):
                recorder.snapshot(1)
            assert recorder.data_map.count.tolist() == [[1, 1], [1, 1], [0, 0], [0, 1]]
    finally:
        pymtg.set_backend(None)
