"""Losses, layouts, calls and arguments that cannot be recorded."""

from __future__ import annotations

import pytest
import torch
from _hooked import BINARY, MIXED, ONE, M, network
from torch import nn

import pymtg
from pymtg import DataMap, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError, PymtgError
from pymtg.hooks import RecordingError


@pytest.mark.parametrize("loss", [nn.NLLLoss, nn.BCELoss, nn.MSELoss, nn.KLDivLoss])
def test_losses_without_logits_are_refused(loss):
    for given, layout in ((loss(), BINARY), ({"species": loss()}, ONE)):
        with pytest.raises(InvalidArgumentError, match=f"must take logits; {loss.__name__} takes"):
            pymtg.record(given, layout, M)


def test_layouts_that_a_loss_does_not_serve():
    for layout in (MIXED, BINARY, TaskLayout.binary(["one"])):
        with pytest.raises(InvalidArgumentError, match="one softmax task of 2 or more classes"):
            pymtg.record(nn.CrossEntropyLoss(), layout, M)
    with pytest.raises(InvalidArgumentError, match="serves one-logit tasks; task 'kind' has 3 logits"):
        pymtg.record(nn.BCEWithLogitsLoss(), MIXED, M)


@pytest.mark.parametrize(
    ("loss", "layout", "logits", "targets", "error", "match"),
    [
        ("CE", ONE, torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), InvalidArgumentError, "spatial outputs"),
        ("CE", ONE, torch.zeros(3), torch.tensor(1), InvalidArgumentError, r"must be \[B, 3\]; got \[3\]"),
        ("CE", ONE, torch.zeros(2, 5), torch.zeros(2).long(), InvalidArgumentError, r"\[B, 3\]; got \[2, 5\]"),
        ("CE", ONE, torch.zeros(2, 3), torch.full((2, 3), 1 / 3), InvalidTypeError, "class probabilities"),
        ("BCE", BINARY, torch.zeros(2, 4), torch.full((2, 4), 0.9), InvalidArgumentError, "column 0 holds 0.9"),
        ("BCE", BINARY, torch.zeros(2, 4), torch.full((2, 4), 2.0), InvalidArgumentError, r"0\.\.1 or ignore_index"),
        ("BCE", BINARY, torch.zeros(2, 4), torch.full((2, 4), torch.inf), InvalidArgumentError, "holds inf"),
        ("BCE", BINARY, torch.zeros(2, 3), torch.zeros(2, 3), InvalidArgumentError, r"\[B, 4\]; got \[2, 3\]"),
        ("BCE", BINARY, torch.zeros(2, 4, 5, 5), torch.zeros(2, 4, 5, 5), InvalidArgumentError, "spatial outputs"),
    ],
)
def test_calls_that_have_no_gold_probability(loss, layout, logits, targets, error, match):
    module = {"CE": nn.CrossEntropyLoss, "BCE": nn.BCEWithLogitsLoss}[loss]()
    with pymtg.record(module, layout, M) as recorder:
        recorder.ids([0, 1])
        with pytest.raises(error, match=match):
            module(logits, targets)
        with pytest.raises(RecordingError, match="no sample ids"):  # the batch is dropped
            module(logits, targets)
    assert int(recorder.data_map.count.sum()) == 0


def test_one_binary_task_may_be_flat():
    layout = TaskLayout.binary(["odd"])
    loss = nn.BCEWithLogitsLoss()
    with pymtg.record(loss, layout, M) as recorder:
        for shape in ((4,), (4, 1)):
            recorder.ids(range(4))
            loss(torch.ones(shape, requires_grad=True), torch.ones(shape))
    assert recorder.data_map.mean[:4, 0].tolist() == pytest.approx([torch.sigmoid(torch.tensor(1.0)).item()] * 4)


def test_targets_and_models_mixed_up():
    model, x = network(ONE), torch.zeros(2, 5)
    with pymtg.record(model, ONE, M) as recorder:
        recorder.ids([0, 1])
        with pytest.raises(InvalidArgumentError, match=r"recorder.batch\(ids, targets\)"):
            model(x)
        recorder.batch([0, 1], torch.tensor([0, 5]))
        with pytest.raises(InvalidArgumentError, match=r"0\.\.2 or ignore_index.*holds 5"):
            model(x)
        recorder.batch([0, 1], [0, 1])
        with pytest.raises(InvalidTypeError, match="targets of task 'species' must be a tensor; got list"):
            model(x)
    with (
        pymtg.record(nn.CrossEntropyLoss(), ONE, M) as recorder,
        pytest.raises(InvalidArgumentError, match="a hooked loss has its own"),
    ):
        recorder.batch([0, 1], torch.tensor([0, 1]))


def test_non_finite_logits_are_counted_and_left_out():
    loss, logits = nn.CrossEntropyLoss(), torch.zeros(3, 3)
    logits[1, 2] = torch.nan
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids([0, 1, 2])
        assert loss(logits, torch.tensor([0, 1, 2])).isnan()
    assert recorder.data_map.num_rejected == 1
    assert recorder.data_map.count[:3, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, InvalidArgumentError, "num_samples must be given"),
        ({"num_samples": 0}, InvalidArgumentError, "num_samples must be at least 1"),
        ({"num_samples": 3, "ddof": 2}, InvalidArgumentError, "ddof must be 0 or 1"),
        ({"num_samples": 3, "ignore_index": 1.5}, InvalidTypeError, "ignore_index must be an integer"),
        ({"data_map": 3}, InvalidTypeError, "data_map must be a DataMap"),
        ({"data_map": DataMap(3, BINARY)}, InvalidArgumentError, "data_map must have the layout"),
        ({"data_map": DataMap(3, ONE), "num_samples": 4}, InvalidArgumentError, r"num_samples must be .*\(3\).*got 4"),
        ({"data_map": DataMap(3, ONE), "missing": True}, InvalidArgumentError, "missing must be that of data_map"),
    ],
)
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match) as caught:
        pymtg.record(nn.CrossEntropyLoss(), ONE, **options)
    assert isinstance(caught.value, PymtgError)
    with pytest.raises(InvalidTypeError, match="layout must be a TaskLayout"):
        pymtg.record(nn.CrossEntropyLoss(), ["species"], 3)


def test_regression_tasks_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'x' is a regression; MultiTaskLoss records both kinds"):
        pymtg.record(None, TaskLayout.regression(["x"]), num_samples=3)
