"""MultiTaskLoss: the contract of the module over the fused loss."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from _cases import Case, random_case, random_layout

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.functional import multitask_cross_entropy

IDS = torch.arange(9)


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    return random_case(random_layout([1, 4, 2, 1], generator, weighted=True), 9, generator, missing="some")


@pytest.mark.parametrize(
    "weights", [None, [0.0, 2.0, 0.5, 1.0], torch.tensor([3, 0, 1, 2])], ids=["none", "list", "int"]
)
def test_weighted_sum(case: Case, weights: Any, backend: str) -> None:
    loss = MultiTaskLoss(case.layout, task_weights=weights, backend=backend)
    total = loss(case.logits, case.targets)
    losses = multitask_cross_entropy(case.logits, case.targets, case.layout, backend=backend)
    w = torch.ones(4) if weights is None else torch.as_tensor(weights).float()
    expected = (w * losses).sum()
    assert total.shape == ()
    torch.testing.assert_close(total, expected)
    got, wanted = (torch.autograd.grad(value * 1.5, case.logits)[0] for value in (total, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
    assert loss.task_losses is not None
    assert torch.equal(loss.task_losses, losses)
    assert not loss.task_losses.requires_grad


def test_weights_are_a_buffer(case: Case) -> None:
    loss = MultiTaskLoss(case.layout, task_weights=[1, 2, 3, 4])
    assert not list(loss.parameters())
    assert loss.state_dict().keys() == {"task_weights"}
    assert loss.task_weights is not None
    assert loss.task_weights.dtype == torch.float32
    other = MultiTaskLoss(case.layout, task_weights=[1, 1, 1, 1])
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.task_weights, loss.task_weights)
    assert MultiTaskLoss(case.layout).state_dict() == {}
    given = torch.ones(4)
    loss = MultiTaskLoss(case.layout, task_weights=given)
    given.zero_()
    assert bool(loss.task_weights.all()), "the caller's tensor is not shared"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_moves_to_another_dtype(case: Case, dtype: torch.dtype, backend: str) -> None:
    loss = MultiTaskLoss(case.layout, task_weights=[1, 2, 0.5, 4], backend=backend)
    expected = loss(case.logits, case.targets)
    moved = loss.to(dtype)
    assert moved.task_weights.dtype == dtype
    for logits in (case.logits, case.logits.double(), case.logits.to(dtype)):
        total = moved(logits, case.targets)
        assert total.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(total.float(), expected, rtol=0.02, atol=0.02)
        total.backward()


def test_records_in_training_mode_unless_paused(case: Case, backend: str) -> None:
    data_map = DataMap(9, case.layout, missing=True)
    loss = MultiTaskLoss(case.layout, data_map, backend=backend)
    valid = (case.targets != -100).int()

    def count_after(*arguments: Any) -> torch.Tensor:
        loss(*arguments)
        return data_map.count

    arguments = (case.logits, case.targets, IDS)
    assert torch.equal(count_after(*arguments), valid)
    loss.eval()
    assert torch.equal(count_after(*arguments), valid)
    assert torch.equal(count_after(*arguments[:2]), valid), "no ids needed"
    loss.train()
    with loss.paused():
        assert torch.equal(count_after(*arguments[:2]), valid)
        with loss.paused():
            pass
        assert torch.equal(count_after(*arguments), valid)
    loss.recording = False
    assert torch.equal(count_after(*arguments), valid)
    with pytest.raises(KeyError), loss.paused():
        raise KeyError
    assert not loss.recording
    loss.recording = True
    assert torch.equal(count_after(*arguments), 2 * valid)
    with torch.no_grad():
        assert torch.equal(count_after(*arguments), 3 * valid)


def test_ids_are_not_looked_at_when_nothing_is_recorded(case: Case, backend: str) -> None:
    loss = MultiTaskLoss(case.layout, DataMap(9, case.layout, missing=True), backend=backend).eval()
    expected = loss(case.logits, case.targets)
    for ids in (IDS + 1000, IDS.float(), "ids", [1, 2]):
        assert torch.equal(loss(case.logits, case.targets, ids), expected)


def test_ids_are_needed_when_recording(case: Case) -> None:
    loss = MultiTaskLoss(case.layout, DataMap(9, case.layout, missing=True))
    with pytest.raises(InvalidArgumentError, match="sample_ids must be given with a data map; got None"):
        loss(case.logits, case.targets)


def test_ignore_index(case: Case) -> None:
    loss = MultiTaskLoss(case.layout, ignore_index=-7)
    expected = MultiTaskLoss(case.layout)(case.logits, case.targets)
    targets = torch.where(case.targets == -100, -7, case.targets)
    assert torch.equal(loss(case.logits, targets), expected)


def test_copies(case: Case) -> None:
    loss = MultiTaskLoss(case.layout, DataMap(9, case.layout, missing=True), [1, 2, 3, 4])
    loss(case.logits, case.targets, IDS).backward()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.data_map is not loss.data_map
        total = other(case.logits, case.targets, IDS)
        assert torch.equal(total, MultiTaskLoss(case.layout, None, [1, 2, 3, 4])(case.logits, case.targets))
        assert int(other.data_map.count.max()) == 2
    assert int(loss.data_map.count.max()) == 1


def test_repr(case: Case) -> None:
    assert repr(MultiTaskLoss(case.layout)) == "MultiTaskLoss(4 tasks, 8 logits, data_map=False)"
    assert "data_map=True" in repr(MultiTaskLoss(case.layout, DataMap(3, case.layout)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layout": "x"}, InvalidTypeError, "layout must be a TaskLayout; got str"),
        ({"data_map": "x"}, InvalidTypeError, "data_map must be a DataMap; got str"),
        ({"data_map": DataMap(3, TaskLayout.binary(["z"]))}, InvalidArgumentError, "data_map must have the layout"),
        ({"task_weights": [1.0]}, InvalidArgumentError, r"task_weights must have one entry per task \(2\); got \[1\]"),
        ({"task_weights": 1.0}, InvalidArgumentError, r"task_weights must have one entry per task \(2\); got \[\]"),
        ({"task_weights": [1.0, -1.0]}, InvalidArgumentError, r"finite and not negative; got \[1.0, -1.0\]"),
        ({"task_weights": [1.0, torch.nan]}, InvalidArgumentError, "finite and not negative; got"),
        ({"task_weights": torch.ones(2).to_sparse()}, InvalidTypeError, "task_weights must be a dense .*sparse_coo"),
        ({"task_weights": ["a", "b"]}, InvalidTypeError, "task_weights must be numbers"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiTaskLoss(**{"layout": TaskLayout.binary(["a", "b"])} | arguments)
