"""Lightning: what is recorded, when, and that a resumed fit goes on with it."""

from __future__ import annotations

import logging
import pickle
import sys
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import torch
from _observed import Observed, assert_same_map
from _settings import new_seed
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Subset, TensorDataset

from pymtg import DataMap, TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, SampleIdError
from pymtg.hooks import RecordingError
from pymtg.integrations.lightning import DataMapCallback, DataMapMixin
from pymtg.integrations.lightning._loaders import Padding

# Their own affairs: a deprecated call inside Lightning, advice on workers, logging intervals and checkpoints.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)

M, T = 23, 3
LAYOUT = TaskLayout.binary([f"task{t}" for t in range(T)])


class Net(LightningModule):
    """Returns what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(5, T)
        self.observed = Observed()

    def scored(self, ids, inputs, targets):
        logits = self.linear(inputs)
        if self.trainer.training:
            self.observed.note(logits, targets, ids)
        return logits, nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)

    def training_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits, loss = self.scored(ids, inputs, targets)
        return {"loss": loss, "logits": logits, "targets": targets}

    def validation_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        self.log("val_loss", self.scored(ids, inputs, targets)[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class WithoutLogits(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)["loss"]}


class Mixed(DataMapMixin, Net):
    """Sees batches without ids, and returns the loss alone."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        logits, loss = self.scored(self._pymtg_ids, inputs, targets)
        self.record(logits, targets)
        return loss

    def validation_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits = self.linear(inputs)
        self.record(logits, targets, ids)
        self.log("val_loss", logits.sum())


class Dicts(Net):
    """Targets and ids stay in the batch, which is a dict."""

    def training_step(self, batch, batch_idx):
        logits, loss = self.scored(batch["sample_id"], batch["x"], batch["y"])
        return {"loss": loss, "scores": logits}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.linear(batch["x"]).sum())


def data(size=M):
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 5, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 2, (size, T), generator=generator).float())


def as_dicts(dataset):
    return [{"x": x, "y": y} for x, y in dataset]


def trainer(*callbacks, max_epochs=2, **options):
    options = {"enable_checkpointing": False, "limit_val_batches": 2, **options}
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def fit(module, callback, dataset=None, max_epochs=2, ckpt_path=None, shuffle=True, callbacks=(), **options):
    dataset = with_ids(data()) if dataset is None else dataset
    loader = DataLoader(dataset, batch_size=4, shuffle=shuffle)
    given = callback if isinstance(callback, list) else [callback]
    run = trainer(*given, *callbacks, max_epochs=max_epochs, **options)
    run.fit(module, loader, DataLoader(dataset, batch_size=4), ckpt_path=ckpt_path)
    return run


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


# Checkpoints


def both(**options):
    return [DataMapCallback(**options), DataMapCallback(name="other", snapshot_epochs=[2, 3], snapshots="disk")]


def test_a_mixed_module_fills_the_maps_of_several_callbacks():
    net, callbacks = Mixed(), both()
    fit(net, callbacks, max_epochs=3)
    for callback in callbacks:
        assert_same_map(callback.data_map, net.observed.map(LAYOUT, M))


@pytest.mark.parametrize("saved", ["train end", "validation end"])
def test_a_resumed_fit_goes_on_with_its_maps(tmp_path, saved):
    dataset = with_ids(data())
    monitor = {} if saved == "train end" else {"monitor": "val_loss", "save_on_train_epoch_end": False}

    def run(callbacks, max_epochs, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, **monitor)
        options = {"enable_checkpointing": True, "callbacks": [keep], "shuffle": False}
        fit(Net(), callbacks, dataset, max_epochs, ckpt_path, **options)
        return callbacks

    whole = run(both(), 4)
    resumed = run(both(), 4, tmp_path / "epoch=1.ckpt")
    for mine, theirs in zip(resumed, whole, strict=True):
        assert_same_map(mine.data_map, theirs.data_map)
    assert whole[0].data_map.snapshot_epochs == (1, 2, 3, 4)
    assert whole[1].data_map.snapshot_epochs == (2, 3)
    # the last epoch's snapshot too, where there is nothing left to train
    with pytest.warns(UserWarning, match=r"max_epochs \(2\); got 3"):
        ended = run(both(), 2, tmp_path / "epoch=1.ckpt")
    assert ended[0].data_map.snapshot_epochs == (1, 2)


class Remembering(DataLoader):
    """A loader that Lightning can resume in the middle of an epoch."""

    position = 0

    def __iter__(self):
        start = self.position % len(self)
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.position = number + 1
                yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def test_a_fit_resumed_within_an_epoch_goes_on_with_its_map(tmp_path):
    dataset = with_ids(data())

    def run(ckpt_path=None):
        callback = DataMapCallback()
        keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
        run = trainer(callback, keep, enable_checkpointing=True, limit_val_batches=0)
        run.fit(Net(), Remembering(dataset, batch_size=4), ckpt_path=ckpt_path)
        return callback

    whole = run()
    resumed = run(tmp_path / "step=8.ckpt")  # of 12
    assert resumed.num_batches == 4
    assert_same_map(resumed.data_map, whole.data_map)


def test_a_fit_from_the_start_begins_an_empty_map_and_one_that_goes_on_keeps_it():
    dataset, callback = with_ids(data()), DataMapCallback()
    first = fit(Net(), callback, dataset, max_epochs=1)
    fit(Net(), callback, dataset, max_epochs=1)
    assert callback.data_map.count.eq(1).all()
    net = Net()
    run = fit(net, callback, dataset, max_epochs=1)
    run.fit_loop.max_epochs = 3
    run.fit(net, DataLoader(dataset, batch_size=4))
    assert callback.data_map.count.eq(3).all()
    assert callback.data_map.snapshot_epochs == (1, 2, 3)
    assert first is not run


def test_a_fit_from_the_start_takes_the_size_of_its_training_set():
    callback = DataMapCallback()
    for size in (7, M, 5):
        fit(Net(), callback, with_ids(Subset(data(), range(size))), max_epochs=1)
        assert callback.data_map.count[:, 0].tolist() == [1] * size


class ByHand(Net):
    """Steps that Lightning does not count."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        returned = super().training_step(batch, batch_idx)
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(returned["loss"])
        optimizer.step()
        return returned


@pytest.mark.parametrize("again", ["a new trainer, a checkpoint", "the same trainer", "a new trainer"])
def test_a_training_whose_steps_are_not_counted_goes_on_with_its_map(tmp_path, again):
    dataset, callback, ckpt_path = with_ids(data()), DataMapCallback(), None
    run = fit(ByHand(), callback, dataset, max_epochs=1)
    assert run.global_step == 0
    if again == "the same trainer":
        run.fit_loop.max_epochs = 2
        run.fit(ByHand(), DataLoader(dataset, batch_size=4))
    else:
        if again.endswith("checkpoint"):
            ckpt_path = tmp_path / "one.ckpt"
            run.save_checkpoint(ckpt_path)
        fit(ByHand(), callback, dataset, max_epochs=2, ckpt_path=ckpt_path)
    assert callback.data_map.count.eq(2).all()
    assert callback.data_map.snapshot_epochs == (1, 2)


@pytest.mark.parametrize(
    ("asked", "named", "options"),
    [
        ([1, 9, 5], "5, 9", {}),
        (3, "3", {}),
        ([1, 2], None, {}),
        (2, None, {}),
        (None, None, {}),
        ([9], None, {"max_epochs": -1, "max_steps": 1}),
        ([9], None, {"fast_dev_run": True}),
    ],
)
def test_snapshots_beyond_the_last_epoch_are_warned_of(recwarn, asked, named, options):
    fit(Net(), DataMapCallback(snapshot_epochs=asked), **options)
    found = [w for w in recwarn if "snapshot_epochs" in str(w.message)]
    if named is None:
        assert not found
        return
    (warning,) = found
    assert warning.category is UserWarning
    assert f"snapshot_epochs must not go beyond the trainer's max_epochs (2); got {named}:" in str(warning.message)


def test_only_the_first_rank_warns_of_snapshots_beyond():
    other = SimpleNamespace(max_epochs=2, is_global_zero=False, fast_dev_run=False)
    DataMapCallback(snapshot_epochs=[9]).on_fit_start(other, Net())  # warnings fail tests


def test_a_map_that_is_handed_over_is_gone_on_with():
    given = DataMap(M, LAYOUT)
    given.update(torch.full((1, T), 0.5), torch.tensor([4]))
    callback = DataMapCallback(data_map=given)
    fit(Net(), callback)
    assert callback.data_map is given
    assert given.count[:, 0].tolist() == [2] * 4 + [3] + [2] * (M - 5)


def test_a_state_of_other_tasks_is_refused():
    callback, other = DataMapCallback(), DataMapCallback(TaskLayout.binary(["x"]))
    fit(Net(), callback)
    with pytest.raises(InvalidArgumentError, match="state"):
        other.load_state_dict(callback.state_dict())
    assert other.data_map is None
    with pytest.raises(InvalidArgumentError, match="state must hold data_map"):
        other.load_state_dict({"x": 1})


# Padding


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_what_a_distributed_sampler_repeats_is_left_out(size, ranks, batch, shuffle):
    dataset, seen = list(range(size)), []
    for rank in range(ranks):
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=shuffle, seed=3)
        loader, padding = DataLoader(dataset, batch, sampler=sampler), Padding()
        for _ in range(2):
            padding.begin(loader)
            for rows in loader:
                seen += rows[: padding.real_rows(len(rows))].tolist()
    assert sorted(seen) == sorted(dataset * 2)


class EverySecond(Mixed):
    """Records every second row, the last ones first, and nothing of one batch."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        logits = self.linear(inputs)
        if batch_idx == 1:
            return None
        for rows in (slice(4, None, 2), slice(0, 4, 2)):
            self.record(logits[rows], targets[rows], self._pymtg_ids[rows])
        return logits.square().sum()


class ReturnsEverySecond(Net):
    def training_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        logits = self.linear(inputs)
        if batch_idx == 1:
            return None
        return {"loss": logits.sum(), "logits": logits[::2], "targets": targets[::2], "sample_id": ids[::2]}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("module", [EverySecond, ReturnsEverySecond])
def test_copies_are_told_by_their_place_in_the_batch_where_a_step_records_some_rows(module):
    dataset, counts = with_ids(data(101)), 0
    for rank in range(2):
        sampler = DistributedSampler(dataset, 2, rank, shuffle=False)
        callback = DataMapCallback(LAYOUT)
        run = trainer(callback, max_epochs=1, limit_val_batches=0, use_distributed_sampler=False)
        run.fit(module(), DataLoader(dataset, batch_size=8, sampler=sampler))
        counts = counts + callback.data_map.count[:, 0]
    recorded = [at for at in range(101) if at // 2 % 8 % 2 == 0 and at // 2 // 8 != 1]
    assert counts.nonzero().flatten().tolist() == recorded
    assert counts.max() == 1


def test_rows_of_parts_that_are_real():
    padding = Padding()
    padding._real = 4
    assert padding.real_rows_of([[0, 1]], [0, 1, 2]) == [None]
    padding.rows_seen = 0
    assert padding.real_rows_of([], [7, 7]) == []
    assert padding.real_rows_of([[2, 1], [2, 3, 1]], [1, 2, 1, 3]) == [[0, 1], [0]]
    padding.rows_seen = 2
    assert padding.real_rows_of([[50, 51, 52, 53], [50]], [1, 2, 1, 3]) == [[0, 1], None]


class Weighted(DistributedSampler):
    """Draws three times as many samples as there are, none of them padding."""

    def __iter__(self):
        return iter([self.rank, *range(len(self.dataset))] * 3)

    def __len__(self):
        return 3 * (1 + len(self.dataset))


def test_all_that_a_sampler_draws_in_its_own_way_is_real():
    dataset = list(range(10))
    for loader in (
        DataLoader(dataset, 4, sampler=Weighted(dataset, 2, 1)),
        DataLoader(dataset, batch_sampler=BatchSampler(Weighted(dataset, 2, 1), 4, drop_last=False)),
    ):
        padding = Padding()
        padding.begin(loader)
        assert sum(padding.real_rows(len(rows)) for rows in loader) == 33


def test_what_lightnings_wrapper_of_a_sampler_repeats_is_left_out():
    dataset, seen = list(range(7)), []
    for rank in range(2):
        sampler = DistributedSamplerWrapper(RandomSampler(dataset, generator=torch.Generator()), 2, rank)
        loader, padding = DataLoader(dataset, 3, sampler=sampler), Padding()
        padding.begin(loader)
        for rows in loader:
            seen += rows[: padding.real_rows(len(rows))].tolist()
    assert sorted(seen) == dataset


# Mistakes


def test_missing_pieces_are_named():
    with pytest.raises(RecordingError, match=r"no logits under the key 'logits'.*\['loss'\].*a list of 3"):
        fit(WithoutLogits(), DataMapCallback(), limit_val_batches=0)
    with pytest.raises(RecordingError, match="no targets at position 7"):
        fit(Net(), DataMapCallback(targets=7), limit_val_batches=0)
    with pytest.raises(RecordingError, match=r"no ids under the key 'index': .* pymtg.data.with_ids"):
        fit(Net(), DataMapCallback(ids="index"), limit_val_batches=0)  # although the loader numbers its samples
    loader = DataLoader([{"x": torch.zeros(5), "y": torch.zeros(T)}] * 4, batch_size=2)

    class NoIds(Net):
        def training_step(self, batch, batch_idx):
            logits = self.linear(batch["x"])
            return {"loss": logits.sum(), "logits": logits, "targets": batch["y"]}

    with pytest.raises(RecordingError, match="no ids under the key 'sample_id'"):
        trainer(DataMapCallback()).fit(NoIds(), loader)

    class NoIdsMixed(DataMapMixin, NoIds):
        def training_step(self, batch, batch_idx):
            self.record(self.linear(batch["x"]), batch["y"])

    with pytest.raises(RecordingError, match="no sample ids for this batch"):
        trainer(DataMapCallback()).fit(NoIdsMixed(), loader)


class Source(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(with_ids(data()), batch_size=4)


class HookedSource(Source):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in")
def test_a_hook_of_the_data_module_in_the_place_of_the_mixins_is_named():
    callback = DataMapCallback()
    with pytest.raises(RecordingError, match="HookedSource has an on_after_batch_transfer"):
        trainer(callback).fit(Mixed(), datamodule=HookedSource())
    for module, source in ((Mixed(), Source()), (Net(), HookedSource())):
        trainer(callback).fit(module, datamodule=source)
        assert callback.data_map.count.eq(2).all()


def test_mistakes_in_what_is_recorded():
    with pytest.raises(SampleIdError):
        fit(Net(), DataMapCallback(num_samples=3), limit_val_batches=0)
    with pytest.raises(InvalidArgumentError, match="layout must be given"):
        fit(Net(), DataMapCallback(targets=lambda o, b: o["targets"][:, :2]), limit_val_batches=0)
    with pytest.raises(InvalidArgumentError, match="classification tasks only"):
        fit(Net(), DataMapCallback(TaskLayout.regression(["a", "b", "c"])), limit_val_batches=0)
    with pytest.raises(RuntimeError, match="state_key"):  # Lightning's own
        trainer(DataMapCallback(), DataMapCallback())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "x"}, InvalidTypeError, "layout"),
        ({"num_samples": 0}, InvalidArgumentError, "num_samples"),
        ({"logits": None}, InvalidTypeError, "logits"),
        ({"ids": True}, InvalidTypeError, "ids"),
        ({"name": ""}, InvalidArgumentError, "name"),
        ({"snapshot_epochs": 0}, InvalidArgumentError, "snapshot_epochs"),
        ({"snapshot_epochs": [0]}, InvalidArgumentError, "snapshot_epochs"),
        ({"snapshot_epochs": [1.5]}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshot_epochs": 1.5}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshot_epochs": "all"}, InvalidTypeError, "snapshot_epochs"),
        ({"snapshots": "tape"}, InvalidArgumentError, "snapshots"),
        ({"ddof": 2}, InvalidArgumentError, "ddof"),
        ({"ignore_index": "x"}, InvalidTypeError, "ignore_index"),
        ({"data_map": 3}, InvalidTypeError, "data_map"),
        ({"data_map": DataMap(2, LAYOUT), "num_samples": 3}, InvalidArgumentError, "num_samples"),
        ({"data_map": DataMap(2, LAYOUT), "layout": TaskLayout.binary(["x"])}, InvalidArgumentError, "layout"),
    ],
)
def test_options_are_checked_when_the_callback_is_made(options, error, message):
    with pytest.raises(error, match=message):
        DataMapCallback(**options)


def test_a_map_with_snapshots_is_not_gone_on_with_unless_none_are_taken():
    given = DataMap(2, LAYOUT)
    given.snapshot(3)
    with pytest.raises(InvalidArgumentError, match="must hold no snapshots"):
        DataMapCallback(data_map=given)
    assert DataMapCallback(data_map=given, snapshot_epochs=None).data_map is given


def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pymtg.integrations.lightning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'pymtg\[lightning\]'"):
        import pymtg.integrations.lightning  # noqa: F401


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
