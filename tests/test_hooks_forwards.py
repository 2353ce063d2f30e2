"""Which forwards are recorded, and what happens where ids and forwards are out of step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _hooked import BINARY, MIXED, ONE, M, data, losses_of, network
from torch import nn
from torch.utils.checkpoint import checkpoint

import pymtg
from pymtg.errors import InvalidArgumentError, InvalidTypeError, SampleIdError
from pymtg.hooks import RecordingError


def test_only_training_forwards_with_gradients_count():
    loss, x, y = nn.CrossEntropyLoss(), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids([0, 1, 2, 3])
        with torch.no_grad():
            loss(x, y)
        with torch.inference_mode():
            loss(x, y)
        loss.eval()
        loss(x, y)
        loss.train()
        recorder.pause()
        loss(x, y)
        recorder.resume()
        with recorder.paused():
            loss(x, y)
        assert recorder.num_batches == 0
        loss(x, y)
        assert recorder.num_batches == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_the_backward_pass_does_not_count(reentrant):
    model = network(ONE)
    inputs, labels = data(ONE)
    with pymtg.record(model, ONE, M) as recorder:
        for _ in range(2):
            recorder.batch(torch.arange(M), labels)
            logits = checkpoint(model, inputs.requires_grad_(), use_reentrant=reentrant)
            F.cross_entropy(logits, labels[:, 0]).backward()
        if reentrant:  # its first forward runs under no_grad
            with pytest.raises(RecordingError, match="nothing was recorded"):
                recorder.snapshot(0)
        else:
            recorder.snapshot(0)
    assert recorder.data_map.count.unique().tolist() == [0 if reentrant else 2]


def test_recomputation_leaves_ids_that_were_given_before_the_backward_pass():
    model, loss = network(ONE), nn.CrossEntropyLoss()
    inputs, labels = data(ONE)
    with pymtg.record(model, ONE, M) as recorder:
        recorder.batch(torch.arange(M), labels)
        total = loss(checkpoint(model, inputs, use_reentrant=False), labels[:, 0])
        recorder.batch(torch.arange(M), labels)  # a loop that prepares the next batch early
        total.backward()
        model(inputs)
    assert recorder.num_batches == 2


def test_a_replica_is_refused_and_a_wrapper_works():
    model = network(ONE)
    inputs, labels = data(ONE)
    with pymtg.record(model, ONE, M) as recorder:
        recorder.batch(torch.arange(M), labels)
        with pytest.raises(RecordingError, match=r"replica inside nn.DataParallel"):
            model._replicate_for_data_parallel()(inputs)
    wrapper = nn.DataParallel(model)
    with pymtg.record(wrapper, ONE, M) as recorder:
        recorder.batch(torch.arange(M), labels)
        wrapper(inputs)
    assert recorder.num_batches == 1


def test_ids_without_a_forward_are_replaced():
    loss, y = nn.CrossEntropyLoss(), torch.tensor([0, 1])
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids([7, 8, 9])  # a batch that the loop skips
        recorder.ids([2, 3])
        loss(torch.zeros(2, 3), y)
    assert recorder.data_map.count.flatten().nonzero().flatten().tolist() == [2, 3]


def test_a_forward_without_ids_and_a_second_one_are_errors():
    loss, x, y = nn.CrossEntropyLoss(), torch.zeros(2, 3), torch.tensor([0, 1])
    with pymtg.record(loss, ONE, M) as recorder:
        with pytest.raises(RecordingError, match="there are no sample ids for this forward of CrossEntropyLoss"):
            loss(x, y)
        recorder.ids([0, 1])
        loss(x, y)
        with pytest.raises(RecordingError, match="were used by an earlier forward"):
            loss(x, y)
        recorder.ids([0, 1])
        loss(x, y)
    assert recorder.data_map.count[:2].flatten().tolist() == [2, 2]


@pytest.mark.parametrize("ids", [[0], [0, 1, 2], []])
def test_ids_of_another_length_than_the_batch(ids):
    loss, y = nn.CrossEntropyLoss(), torch.tensor([0, 1])
    by_task = losses_of(MIXED)
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids(ids)
        with pytest.raises(InvalidArgumentError, match=rf"sample_ids must be \[2\], one per row; got \[{len(ids)}\]"):
            loss(torch.zeros(2, 3), y)
        with pytest.raises(RecordingError, match="no sample ids"):  # the batch is dropped
            loss(torch.zeros(2, 3), y)
    with pymtg.record(by_task, MIXED, M) as by_task_recorder:
        by_task_recorder.ids(ids)
        with pytest.raises(InvalidArgumentError, match=r"sample_ids must be \[2\]"):
            by_task["kind"](torch.zeros(2, 3), y)
    assert int(recorder.data_map.count.sum() + by_task_recorder.data_map.count.sum()) == 0


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (torch.zeros(2), InvalidTypeError),
        (torch.zeros(2, dtype=torch.bool), InvalidTypeError),
        ([0.5, 1.0], InvalidTypeError),
        ([True, False], InvalidTypeError),
        ("01", InvalidTypeError),
        (["a", "b"], InvalidTypeError),
        (None, InvalidTypeError),
        (3, InvalidTypeError),
        (torch.zeros(2, 1, dtype=torch.long), InvalidArgumentError),
    ],
)
def test_ids_that_are_none(ids, error):
    with pymtg.record(nn.CrossEntropyLoss(), ONE, M) as recorder, pytest.raises(error, match="sample_ids must"):
        recorder.ids(ids)


@pytest.mark.parametrize("bad", [-1, M])
def test_ids_outside_the_map(bad):
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids([0, bad])
        with pytest.raises(SampleIdError, match=f"row 1 holds {bad}"):
            loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert int(recorder.data_map.count.sum()) == 0


def test_an_exception_in_the_forward_drops_the_batch():
    class Fragile(nn.Module):
        def forward(self, logits, targets):
            if float(targets.sum()) == 0:
                raise MemoryError("out of memory")
            return F.binary_cross_entropy_with_logits(logits, targets)

    loss, x = Fragile(), torch.zeros(2, 4)
    with pymtg.record(loss, BINARY, M) as recorder:
        recorder.ids([0, 1])
        with pytest.raises(MemoryError):
            loss(x, torch.zeros(2, 4))
        with pytest.raises(RecordingError, match="there are no sample ids"):
            loss(x, torch.ones(2, 4))
        recorder.ids([2, 3])
        loss(x, torch.ones(2, 4))
    assert recorder.data_map.count[:, 0].nonzero().flatten().tolist() == [2, 3]


def test_an_exception_in_one_of_several_losses_drops_the_batch():
    losses = losses_of(MIXED)
    with pymtg.record(losses, MIXED, M) as recorder:
        recorder.ids([0, 1])
        losses["kind"](torch.zeros(2, 3), torch.tensor([0, 1]))
        with pytest.raises(IndexError):
            losses["size"](torch.zeros(2, 2), torch.tensor([0, 5]))  # the loss itself refuses
        recorder.ids([2, 3])
        losses["kind"](torch.zeros(2, 3), torch.tensor([0, 1]))
        recorder.discard()  # an exception elsewhere in the step
        recorder.ids([2, 3])
    assert recorder.num_batches == 0


def test_an_exception_out_of_the_with_block_is_the_one_that_is_seen():
    losses = losses_of(MIXED)
    recorder = pymtg.record(losses, MIXED, M)
    with pytest.raises(ZeroDivisionError), recorder:  # noqa: PT012
        recorder.ids([0])
        losses["kind"](torch.zeros(1, 3), torch.tensor([0]))
        raise ZeroDivisionError
    assert not recorder.attached
    assert not any(loss._forward_hooks for loss in losses.values())
