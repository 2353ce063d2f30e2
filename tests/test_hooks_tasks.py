"""Losses by task: skipped, repeated, shared."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _hooked import MIXED, ONE, M, assert_same_map, call, fused_map, losses_of
from torch import nn

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError
from pymtg.hooks import RecordingError


def test_a_skipped_task_needs_a_map_of_missing_labels():
    losses = losses_of(MIXED)
    with pymtg.record(losses, MIXED, M) as recorder:
        for end in (lambda: recorder.ids([1]), lambda: recorder.snapshot(0), recorder.flush, recorder.detach):
            recorder.ids([0, 1])
            call(losses, ["kind", "size"])
            with pytest.raises(MissingLabelError, match=r"without a call of the loss of \['odd'\].*missing=True"):
                end()
    assert not recorder.attached
    assert int(recorder.data_map.count.sum()) == 0


@pytest.mark.parametrize("end", ["ids", "snapshot", "flush", "detach", "loader"])
def test_the_end_of_a_batch_records_the_tasks_that_were_seen(end):
    losses = losses_of(MIXED)
    recorder = pymtg.record(losses, MIXED, M, missing=True).attach()
    if end == "loader":
        for _ in recorder.batches([(torch.tensor([4, 5]), None)]):
            call(losses, ["odd"])
    else:
        recorder.ids([4, 5])
        call(losses, ["odd"])
        assert recorder.num_batches == 0
        {"ids": lambda: recorder.ids([1]), "snapshot": lambda: recorder.snapshot(0)}.get(end, getattr(recorder, end))()
    assert recorder.num_batches == 1
    assert recorder.data_map.count.sum(0).tolist() == [0, 2, 0]
    assert recorder.data_map.mean[4].tolist() == pytest.approx([0, 0.5, 0])


def test_a_task_that_comes_twice_is_an_error():
    losses = losses_of(MIXED)
    with pymtg.record(losses, MIXED, M, missing=True) as recorder:
        recorder.ids([0, 1])
        with pytest.raises(RecordingError, match="the loss of task 'odd' was called again"):
            call(losses, ["odd", "kind", "odd"])
        recorder.ids([0, 1])
        with pytest.raises(RecordingError, match="used by an earlier forward"):
            call(losses, ["odd", "kind", "size", "kind"])
    assert recorder.num_batches == 1


def test_a_shared_module_is_refused_or_called_in_order():
    layout = TaskLayout(["a", "b", "odd"], [3, 3, 1])
    shared = nn.CrossEntropyLoss()
    losses = {"b": shared, "odd": nn.BCEWithLogitsLoss(), "a": shared}
    with pytest.raises(InvalidArgumentError, match=r"\['b', 'a'\] share one"):
        pymtg.record(losses, layout, M)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, generator=generator)
    targets = torch.tensor([[0, 1, 1], [2, 0, 0], [1, 1, 1], [2, 2, 0]])
    with pymtg.record(losses, layout, M, in_order=True, missing=True) as recorder:
        recorder.ids(range(4))
        for name, loss in losses.items():
            target = targets[:, layout.index(name)]
            part = logits[:, layout.columns(name)]
            loss(part[:, 0], target.float()) if name == "odd" else loss(part, target)
        recorder.ids(range(4))
        shared(logits[:, :3], targets[:, 0])
        with pytest.raises(RecordingError, match=r"shared by \['b', 'a'\] was called 1 times"):
            recorder.flush()
    assert_same_map(recorder.data_map, fused_map([(logits, targets, torch.arange(4))], layout, missing=True))


def test_losses_that_are_not_one_per_task():
    losses = losses_of(MIXED)
    losses["height"] = losses.pop("size")
    with pytest.raises(InvalidArgumentError, match=r"without a loss: \['size'\], no task: \['height'\]"):
        pymtg.record(losses, MIXED, M)
    with pytest.raises(InvalidTypeError, match=r"loss_or_model\['kind'\] must be a module; got function"):
        pymtg.record({**losses_of(MIXED), "kind": F.cross_entropy}, MIXED, M)
    with pytest.raises(InvalidArgumentError, match=r"loss_or_model\['odd'\] is an nn.CrossEntropyLoss"):
        pymtg.record({**losses_of(MIXED), "odd": nn.CrossEntropyLoss()}, MIXED, M)
    with pytest.raises(InvalidArgumentError, match="in_order is for a dict"):
        pymtg.record(nn.CrossEntropyLoss(), ONE, M, in_order=True)


def test_logits_that_wait_for_other_tasks_may_be_changed_in_place(generator):
    losses = losses_of(MIXED)
    logits = [torch.randn(4, c, generator=generator) for c in MIXED.num_classes]
    targets = torch.stack([torch.randint(max(c, 2), (4,), generator=generator) for c in MIXED.num_classes], 1)
    ids = torch.arange(4)
    expected = DataMap(M, MIXED)
    MultiTaskLoss(MIXED, expected)(torch.cat(logits, 1), targets, ids)
    with pymtg.record(losses, MIXED, M) as recorder:
        recorder.ids(ids)
        for name, part, column in zip(MIXED.names, logits, targets.T, strict=True):
            own = part.clone().requires_grad_()
            labels = column.float()[:, None] if part.shape[1] == 1 else column
            losses[name](own, labels)
            own.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(recorder.data_map.state, expected.state, strict=True))
