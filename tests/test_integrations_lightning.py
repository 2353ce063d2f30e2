"""Lightning: what is recorded, when, and into which map."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import torch
from _lightning_runs import LAYOUT, THEIR_OWN_AFFAIRS, M, Mixed, Net, T, WithoutLogits, both, data, fit
from _observed import assert_same_map
from _settings import new_seed
from torch import nn
from torch.utils.data import Subset, TensorDataset

from pymtg import DataMap, TaskLayout
from pymtg.data import with_ids
from pymtg.integrations.lightning import DataMapCallback

pytestmark = THEIR_OWN_AFFAIRS


class Dicts(Net):
    """Targets and ids stay in the batch, which is a dict."""

    def training_step(self, batch, batch_idx):
        logits, loss = self.scored(batch["sample_id"], batch["x"], batch["y"])
        return {"loss": loss, "scores": logits}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.linear(batch["x"]).sum())


def as_dicts(dataset):
    return [{"x": x, "y": y} for x, y in dataset]


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize(
    ("module", "where", "dicts"),
    [
        (Net, {}, False),
        (Mixed, {}, False),
        (WithoutLogits, {"logits": lambda o, b: LAST[0], "targets": -1, "ids": 0}, False),
        (Dicts, {"logits": "scores", "targets": "y"}, True),
    ],
)
def test_every_training_batch_is_recorded_once(module, where, dicts, accumulated):
    net = module()
    if module is WithoutLogits:
        net.linear.register_forward_hook(lambda module, args, output: LAST.__setitem__(0, output))
    callback = DataMapCallback(**where)
    dataset = with_ids(as_dicts(data()) if dicts else data())
    fit(net, callback, dataset, accumulate_grad_batches=accumulated)
    assert_same_map(callback.data_map, net.observed.map(LAYOUT, M))
    assert callback.data_map.count.eq(2).all()
    assert callback.data_map.snapshot_epochs == (1, 2)
    assert callback.num_batches == len(net.observed.batches) == 12


LAST = [None]


class Chunks(Mixed):
    """Two optimizer steps a batch, each on a part with ids of its own; then works on what it recorded."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        for rows in (slice(0, 2), slice(2, None)):
            ids = self._pymtg_ids[rows]
            logits, loss = self.scored(ids, inputs[rows], targets[rows])
            self.record(logits, targets[rows], ids)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            logits.detach().zero_()


def test_parts_of_a_batch_are_recorded_each_as_they_were():
    callback, module = DataMapCallback(LAYOUT), Chunks()
    fit(module, callback)
    assert callback.data_map.count.eq(2).all()
    assert_same_map(callback.data_map, module.observed.map(LAYOUT, M))


@pytest.mark.parametrize("before", ["nothing", "a fit with one", "a fit with one that failed"])
def test_a_module_keeps_nothing_where_no_callback_reads_it(before):
    class Watched(Mixed):
        fails, kept = before.endswith("failed"), ()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.kept = (*self.kept, len(self._pymtg_parts or ()))
            if self.fails and batch_idx == 2:
                raise ZeroDivisionError
            return loss

    module = Watched()
    if before != "nothing":
        with pytest.raises(ZeroDivisionError) if module.fails else nullcontext():
            fit(module, DataMapCallback(snapshot_epochs=None))
        assert set(module.kept) == {1}
        assert not module._pymtg_parts
        module.fails, module.kept = False, ()
    fit(module, [])
    assert set(module.kept) == {0}


def test_training_is_what_it_is_without_the_callback():
    dataset, seed = with_ids(data()), new_seed()
    weights = []
    for module, callbacks in ((Net, []), (Net, [DataMapCallback()]), (Mixed, [DataMapCallback()])):
        torch.manual_seed(seed)
        net = module() if callbacks else Net()
        torch.manual_seed(seed)
        fit(net, callbacks, dataset)
        weights.append(net.linear.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_half_precision_logits_are_recorded_as_they_are():
    net, callback = Net(), DataMapCallback()
    fit(net, callback, precision="bf16-mixed")
    assert net.observed.batches[0][0].dtype == torch.bfloat16
    assert_same_map(callback.data_map, net.observed.map(LAYOUT, M))


def test_missing_labels_and_a_subset_that_keeps_its_positions():
    inputs, targets = data().tensors
    targets[::3, 1] = torch.nan
    net = Net()
    net.scored = lambda ids, x, y: (
        net.observed.note(net.linear(x), y, ids) or net.linear(x),
        net.linear(x).square().sum(),
    )
    callback = DataMapCallback(LAYOUT, missing=True, snapshots="gram")
    fit(net, callback, Subset(with_ids(TensorDataset(inputs, targets)), range(5, 20)), limit_val_batches=0)
    assert callback.data_map.num_samples == M
    assert_same_map(callback.data_map, net.observed.map(LAYOUT, M, missing=True))
    assert callback.data_map.count[:5].eq(0).all()
    assert callback.data_map.snapshot_kind == "gram"


def test_one_softmax_task_is_read_off_the_first_batch():
    class Classes(Net):
        def training_step(self, batch, batch_idx):
            ids, inputs, targets = batch
            logits = self.linear(inputs)
            self.observed.note(logits, targets, ids)
            return {"loss": nn.functional.cross_entropy(logits, targets), "logits": logits, "targets": targets}

    inputs = data().tensors[0]
    net, callback = Classes(), DataMapCallback()
    fit(net, callback, with_ids(TensorDataset(inputs, torch.randint(0, T, (M,)))), limit_val_batches=0)
    assert_same_map(callback.data_map, net.observed.map(TaskLayout(["label"], [T]), M))


def test_a_mixed_module_fills_the_maps_of_several_callbacks():
    net, callbacks = Mixed(), both()
    fit(net, callbacks, max_epochs=3)
    for callback in callbacks:
        assert_same_map(callback.data_map, net.observed.map(LAYOUT, M))


def test_processes_that_torch_starts_record_into_maps_of_their_own():
    given_map = DataMap(M, LAYOUT)
    sent = DataMapCallback(data_map=given_map)
    there = pickle.loads(bytes(ForkingPickler.dumps(sent)))  # what a spawned process gets: tensors in shared memory
    there._recording.record(torch.zeros(M, T), torch.ones(M, T), torch.arange(M))
    assert there.data_map.count.eq(1).all()
    assert given_map.count.eq(0).all(), "the process beside it would merge it in once more"


@pytest.mark.parametrize("started", ["spawn", "fork", None])
def test_a_map_that_stays_in_other_processes_is_told(started):
    launcher = SimpleNamespace() if started is None else SimpleNamespace(_start_method=started)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(launcher=launcher), is_global_zero=True, max_epochs=3, fast_dev_run=False
    )
    expected = nullcontext() if started is None else pytest.warns(UserWarning, match=f"of its own .'{started}'.")
    with expected:
        DataMapCallback().on_fit_start(trainer, None)
