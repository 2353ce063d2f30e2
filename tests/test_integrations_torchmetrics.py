"""The data map as a metric: the numbers that the loss records, wherever metrics go."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from pymtg import DataMap, MultiTaskLoss, TaskLayout, cluster_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError, SampleIdError
from pymtg.integrations._layouts import layout_of_batch
from pymtg.integrations._recording import MapRecording
from pymtg.integrations.torchmetrics import DataMapMetric

LAYOUT, M = TaskLayout(["a", "b", "c"], [1, 3, 2]), 11


def batches(generator, number=4, missing=False):
    for _ in range(number):
        targets = torch.stack([torch.randint(c, (6,), generator=generator) for c in (2, 3, 2)], 1)
        if missing:
            targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
        yield torch.randn(6, 6, generator=generator), targets, torch.randint(M, (6,), generator=generator)


def filled(generator, number=4, missing=False, **options):
    """Return a metric and a map that a loss filled with the same batches."""
    metric, data_map = DataMapMetric(LAYOUT, M, missing=missing, **options), DataMap(M, LAYOUT, missing=missing)
    loss = MultiTaskLoss(LAYOUT, data_map)
    for logits, targets, ids in batches(generator, number, missing):
        metric.update(logits, targets, sample_ids=ids)
        loss(logits, targets, ids)
    return metric, data_map


def assert_same(metric, data_map, exact=True):
    state = metric.data_map.state
    if exact:
        assert all(torch.equal(a, b) for a, b in zip(state, data_map.state, strict=True))
    assert torch.equal(state.counts, data_map.state.counts)
    found = metric.compute()
    assert list(found) == ["mean", "std", "correctness"]
    for name, values in found.items():
        torch.testing.assert_close(values, getattr(data_map, name), rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_the_metric_is_the_map_that_the_loss_records(generator, missing):
    metric, data_map = filled(generator, missing=missing)
    assert_same(metric, data_map)
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), metric.to("cpu").half()):
        assert_same(copy, data_map)
    metric.reset()
    assert metric.data_map.count.eq(0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_two_metrics_merge_as_maps_do(generator, missing):
    first, data_map = filled(generator, missing=missing)
    second, other = filled(generator, 3, missing=missing)
    theirs = second.data_map
    first.merge_state(second)
    data_map.merge_(other)
    assert torch.equal(first.data_map.state.counts, data_map.state.counts)
    assert_same(first, data_map, exact=False)
    assert torch.equal(second.data_map.state.words, theirs.state.words)


def test_calling_it_gives_the_values_of_the_batch_and_keeps_all(generator):
    metric, data_map = filled(generator, 0)
    loss = MultiTaskLoss(LAYOUT, data_map)
    for logits, targets, ids in batches(generator):
        alone = DataMap(M, LAYOUT)
        MultiTaskLoss(LAYOUT, alone)(logits, targets, ids)
        loss(logits, targets, ids)
        assert torch.equal(metric(logits, targets, ids)["mean"], alone.mean)
    assert_same(metric, data_map, exact=False)


def test_in_a_collection_and_a_module(generator):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.metrics = MetricCollection({"map": DataMapMetric(LAYOUT, M)}, prefix="train_")
            self.mean = MeanMetric()

    net, data_map = Net(), DataMap(M, LAYOUT)
    loss = MultiTaskLoss(LAYOUT, data_map)
    for logits, targets, ids in batches(generator):
        net.metrics.update(logits, targets, sample_ids=ids)
        loss(logits, targets, ids)
    assert torch.equal(net.metrics.compute()["train_mean"], data_map.mean)
    state, other = net.state_dict(), Net()
    other.load_state_dict(state)
    logits, targets, ids = next(batches(generator))
    other.metrics.update(logits, targets, sample_ids=ids)  # not in the dictionary's own tensors
    assert_same(net.metrics["map"], data_map)
    loss(logits, targets, ids)
    assert_same(other.metrics["map"], data_map)
    assert not DataMapMetric(LAYOUT, M, persistent=False).state_dict()


def test_a_collection_tells_apart_what_stands_for_missing(generator):
    options = {"one": {"ignore_index": 1}, "other": {"ignore_index": 0}, "same": {"ignore_index": 0}}
    alone = {name: DataMapMetric(LAYOUT, M, missing=True, **given) for name, given in options.items()}
    together = MetricCollection({name: metric.clone() for name, metric in alone.items()})
    for logits, targets, ids in batches(generator):
        together.update(logits, targets, sample_ids=ids)
        for metric in alone.values():
            metric.update(logits, targets, sample_ids=ids)
    assert sorted(map(sorted, together.compute_groups.values())) == [["one"], ["other", "same"]]
    for name, metric in together.items():
        assert torch.equal(metric.data_map.count, alone[name].data_map.count)
    for mine, theirs in (("one", "other"), ("other", "one")):  # maps of the same samples, read with another label
        label = int(alone[mine].missing_label)
        alone[mine].merge_state(alone[theirs])
        alone[mine].merge_state(alone[theirs].state_dict())
        alone[mine].load_state_dict(alone[theirs].state_dict())
        alone[mine](*next(batches(generator)))
        assert int(alone[mine].missing_label) == label


@pytest.mark.parametrize("label", [-1, 1, 255])
def test_another_label_stands_for_missing(label, generator):
    targets = torch.randint(3, (5, 1), generator=generator)
    targets[1:3] = label
    logits, ids, layout = torch.randn(5, 3, generator=generator), torch.arange(5), TaskLayout(["a"], [3])
    metric, data_map = DataMapMetric(layout, 5, missing=True, ignore_index=label), DataMap(5, layout, missing=True)
    recording = MapRecording(layout, 5, missing=True, ignore_index=label)
    MultiTaskLoss(layout, data_map, ignore_index=label)(logits, targets, ids)
    for record in (metric.update, recording.record):
        record(logits, targets, ids)
    assert_same(metric, data_map)
    assert all(torch.equal(a, b) for a, b in zip(recording.data_map.state, data_map.state, strict=True))


def test_a_dtype_for_other_metrics_leaves_the_map_as_it_is(generator):
    collection = MetricCollection({"map": DataMapMetric(LAYOUT, M)})
    data_map = DataMap(M, LAYOUT)
    collection.set_dtype(torch.float16)
    for logits, targets, ids in batches(generator, 3):
        collection.update(logits, targets, sample_ids=ids)
        MultiTaskLoss(LAYOUT, data_map)(logits, targets, ids)
    assert_same(collection["map"], data_map)


def test_its_map_is_a_copy_that_grouping_takes(generator):
    metric, data_map = filled(generator)
    copy = metric.data_map
    copy.snapshot(1)
    copy.update(torch.ones(1, 3), torch.tensor([0]))
    assert_same(metric, data_map)
    groups = cluster_tasks(metric.data_map, n_clusters=2, random_state=0)
    assert groups.labels.tolist() == cluster_tasks(data_map, n_clusters=2, random_state=0).labels.tolist()


@pytest.mark.parametrize("options", [{}, {"dist_sync_on_step": True}, {"compute_on_cpu": True}])
@pytest.mark.parametrize("called", [False, True])
def test_mistakes_leave_it_as_it_was(generator, called, options):
    metric, data_map = filled(generator, **options)
    logits, targets, ids = next(batches(generator))
    for error, arguments in (
        (SampleIdError, (logits, targets, ids + M)),
        (MissingLabelError, (logits, targets.index_fill(1, torch.tensor([0]), -100), ids)),
        (InvalidArgumentError, (logits[:, 1:], targets, ids)),
        (InvalidArgumentError, (logits, targets, ids[1:])),
        (InvalidTypeError, (logits, targets, ids.float())),
    ):
        with pytest.raises(error):
            metric(*arguments) if called else metric.update(*arguments)
        assert metric.compute_on_cpu == bool(options.get("compute_on_cpu"))
    assert_same(metric, data_map)
    with pytest.raises(InvalidArgumentError, match="classification tasks only"):
        DataMapMetric(TaskLayout.regression(["x"]), M)
    with pytest.raises(InvalidArgumentError, match="num_samples"):
        DataMapMetric(LAYOUT, 0)


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "pymtg.integrations.torchmetrics")
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"pip install 'pymtg\[torchmetrics\]'"):
        import pymtg.integrations.torchmetrics  # noqa: F401


# What the integrations read off a batch


@given(st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_a_layout_is_read_off_a_batch_in_one_way_or_not_at_all(rows, columns, whole):
    logits, dtype = torch.zeros(rows, columns), torch.long if whole else torch.float
    for targets in (torch.zeros(rows, dtype=dtype), torch.zeros(rows, 1, dtype=dtype)):
        if columns == 1:
            assert layout_of_batch(logits, targets) == TaskLayout.binary(["label"])
            assert layout_of_batch(logits[:, 0], targets) == TaskLayout.binary(["label"])
        elif whole:
            assert layout_of_batch(logits, targets) == TaskLayout(["label"], [columns])
        else:
            with pytest.raises(InvalidArgumentError, match="layout must be given"):
                layout_of_batch(logits, targets)
    if columns > 1:
        many = layout_of_batch(logits, torch.zeros(rows, columns, dtype=dtype))
        assert many == TaskLayout.binary([f"task{t}" for t in range(columns)])
    for bad in ((logits, torch.zeros(rows, columns + 1)), (logits[None], torch.zeros(rows)), ([], torch.zeros(rows))):
        with pytest.raises(InvalidArgumentError, match="layout must be given"):
            layout_of_batch(*bad)


OTHERS = {
    "samples": (LAYOUT, M + 1, {}),
    "tasks of the same size": (TaskLayout(["z", "b", "c"], [1, 3, 2]), M, {}),
    "ddof": (LAYOUT, M, {"ddof": 1}),
    "missing": (LAYOUT, M, {"missing": True}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_states_of_other_maps_are_refused(name, generator):
    layout, samples, options = OTHERS[name]
    metric, other = DataMapMetric(LAYOUT, M), DataMapMetric(layout, samples, **options)
    for logits, targets, ids in batches(generator):
        for one in (metric, other):
            one.update(logits, targets, sample_ids=ids)
    before = other.words_and_counts.clone()
    with pytest.raises(InvalidArgumentError, match=r"state_dict must be of a metric .* num_samples"):
        other.load_state_dict(metric.state_dict())
    for incoming in (metric, dict(metric.metric_state)):
        with pytest.raises(InvalidArgumentError, match="incoming_state must be of a metric"):
            other.merge_state(incoming)
    assert torch.equal(other.words_and_counts, before)
