"""Recording from loops that somebody else wrote: the same map as the fused loss, and no other trace."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import pickle
import random
import warnings
import weakref
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError, PymtgError, SampleIdError
from pymtg.hooks import Recorder, RecordingError

M = 41
ONE = TaskLayout(["species"], [3])
BINARY = TaskLayout.binary(["a", "b", "c", "d"])
MIXED = TaskLayout(["kind", "odd", "size"], [3, 1, 2])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(layout, seed=0, rows=M):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    columns = [torch.randint(max(2, c), (rows,), generator=generator) for c in layout.num_classes]
    return inputs, torch.stack(columns, dim=1)


def network(layout):
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, layout.num_logits))


def losses_of(layout):
    return {
        name: nn.BCEWithLogitsLoss() if classes == 1 else nn.CrossEntropyLoss()
        for name, classes in zip(layout.names, layout.num_classes, strict=True)
    }


def fused_map(seen, layout, **options):
    """The map that the library's own loss makes of batches (logits, targets, ids)."""
    ignore_index = options.pop("ignore_index", -100)
    data_map = DataMap(M, layout, **options)
    loss = MultiTaskLoss(layout, data_map, ignore_index=ignore_index)
    for logits, targets, ids in seen:
        loss(logits.clone().requires_grad_(), targets, ids)
    return data_map


def assert_same_map(first, second):
    for name, one, other in zip(first.state._fields, first.state, second.state, strict=True):
        assert torch.equal(one, other), name
    assert int(first.count.sum()) > 0


# Loops that somebody else wrote. Each takes `tell(ids, targets)`, the one line that a recorder adds, and appends what
# the model returned to `seen`; without a recorder `tell` does nothing.


def tutorial_loop(model, loss_fn, dataset, tell, seen, log):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(with_ids(dataset), batch_size=8, shuffle=True)
    for _ in range(3):
        model.train()
        for ids, x, y in loader:
            tell(ids, y)
            logits = model(x)
            loss = loss_fn(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append((logits.detach(), y, ids))
            log.append(loss.item())
        model.eval()
        with torch.no_grad():
            for _, x, y in loader:
                log.append(loss_fn(model(x), y).item())


def accumulating_bf16_loop(model, loss_fn, dataset, tell, seen, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for step, (ids, x, y) in enumerate(DataLoader(with_ids(dataset), batch_size=5, shuffle=True)):
            tell(ids, y)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(x)
                assert logits.dtype == torch.bfloat16
                loss = loss_fn(input=logits, target=y) / 4
            loss.backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
            seen.append((logits.detach(), y, ids))
            log.append(loss.item())


def tasks_loop(model, losses, dataset, tell, seen, log):
    """Losses by name, in a random order, some skipped: `losses.layout` says which columns are whose."""
    layout = losses.layout
    order = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        for ids, x, y in DataLoader(with_ids(dataset), batch_size=7, shuffle=True):
            tell(ids, y)
            logits = model(x)
            names = order.sample(layout.names, k=order.randint(1, len(layout)) if losses.skip else len(layout))
            total = 0.0
            for name in names:
                part, target = logits[:, layout.columns(name)], y[:, layout.index(name)]
                if part.shape[1] == 1:
                    part, target = part.squeeze(1), target.float()
                total = total + losses.by_name[name](part, target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            skipped = [t for t, name in enumerate(layout.names) if name not in names]
            y = y.clone()
            y[:, skipped] = -100
            seen.append((logits.detach(), y, ids))
            log.append(total.item())


class Focal(nn.Module):
    """A loss of their own, on all logits at once."""

    def forward(self, predictions, labels):
        p = torch.sigmoid(predictions)
        gold = torch.where(labels == 1, p, 1 - p)
        return -((1 - gold) ** 2 * gold.log()).mean()


def run(loop, layout, loss, hooked=None, targets=None, **options):
    """Run a loop, without a recorder where `hooked` is None; return recorder and all that the loop leaves behind."""
    torch.manual_seed(3)
    model = network(layout)
    inputs, labels = data(layout)
    dataset = TensorDataset(inputs, labels if targets is None else targets(labels))
    seen, log = [], []
    recorder = None
    if hooked is None:
        loop(model, loss, dataset, lambda ids, y: None, seen, log)
    elif hooked == "model":
        with pymtg.record(model, layout, num_samples=M, **options) as recorder:
            loop(model, loss, dataset, recorder.batch, seen, log)
    else:
        with pymtg.record(hooked, layout, num_samples=M, **options) as recorder:
            loop(model, loss, dataset, lambda ids, y: recorder.ids(ids), seen, log)
    traces = (model.state_dict(), log, torch.get_rng_state())
    return recorder, seen, traces


def first_column(labels):
    return labels[:, 0]


CE = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1, reduction="sum")
BCE = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
SKIPPING = SimpleNamespace(layout=MIXED, by_name=losses_of(MIXED), skip=True)
COMPLETE = SimpleNamespace(layout=MIXED, by_name=nn.ModuleDict(losses_of(MIXED)), skip=False)
LOOPS = {
    "cross-entropy": (tutorial_loop, ONE, CE, CE, first_column, {}),
    "cross-entropy, bf16": (accumulating_bf16_loop, ONE, CE, CE, first_column, {"ddof": 1}),
    "binary": (tutorial_loop, BINARY, BCE, BCE, torch.Tensor.float, {}),
    "binary, bf16": (accumulating_bf16_loop, BINARY, BCE, BCE, torch.Tensor.float, {}),
    "own loss": (tutorial_loop, BINARY, focal := Focal(), focal, None, {"missing": True}),
    "by task": (tasks_loop, MIXED, COMPLETE, COMPLETE.by_name, None, {}),
    "by task, skipping": (tasks_loop, MIXED, SKIPPING, SKIPPING.by_name, None, {"missing": True}),
    "model": (tutorial_loop, BINARY, F.binary_cross_entropy_with_logits, "model", torch.Tensor.float, {}),
    "model, one task": (accumulating_bf16_loop, ONE, F.cross_entropy, "model", first_column, {}),
}


@pytest.mark.parametrize("case", LOOPS)
def test_same_map_as_the_fused_loss_and_no_other_trace(case):
    loop, layout, loss, hooked, targets, options = LOOPS[case]
    _, plain, traces = run(loop, layout, loss, targets=targets)
    recorder, seen, recorded_traces = run(loop, layout, loss, hooked, targets, **options)

    for name, value in traces[0].items():
        assert torch.equal(value, recorded_traces[0][name]), name
    assert traces[1] == recorded_traces[1]
    assert torch.equal(traces[2], recorded_traces[2])
    assert len(plain) == len(seen) == recorder.num_batches
    matrices = [(x, y.long() if y.dim() == 2 else y.long()[:, None], ids) for x, y, ids in seen]
    assert_same_map(recorder.data_map, fused_map(matrices, layout, **options))


def test_gradients_of_one_step_are_the_same_bits():
    inputs, labels = data(ONE)
    gradients = []
    for hooked in (False, True):
        logits = (inputs[:, :3] * 2).requires_grad_()
        loss = nn.CrossEntropyLoss()
        if hooked:
            recorder = pymtg.record(loss, ONE, M).attach()
            recorder.ids(range(M))
        loss(logits, labels[:, 0]).backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients)


def test_a_loader_that_gives_the_ids_by_itself():
    inputs, labels = data(BINARY)
    loss = nn.BCEWithLogitsLoss()
    recorder = pymtg.record(loss, BINARY, M)
    loader = recorder.batches(DataLoader(with_ids(TensorDataset(inputs, labels)), batch_size=6))
    assert len(loader) == 7
    assert loader.batch_size == 6

    def epoch():
        for x, y in loader:  # as if there were no ids
            loss(x[:, :4].requires_grad_(), y.float())

    with recorder:
        epoch()
        epoch()
    epoch()  # detached: the loop still runs
    batches = [(inputs[ids, :4], labels[ids], ids) for ids in torch.arange(M).split(6)]
    expected = fused_map(batches * 2, BINARY)
    assert_same_map(recorder.data_map, expected)
    assert pickle.loads(pickle.dumps(loader.dataset))[3][0] == 3


def test_a_model_whose_ids_come_from_the_loader():
    inputs, labels = data(ONE)
    model = network(ONE)
    recorder = pymtg.record(model, ONE, M)
    loader = recorder.batches(DataLoader(with_ids(TensorDataset(inputs, labels)), batch_size=6))
    with recorder:
        for x, y in loader:
            recorder.targets(y)
            model(x)
        with pytest.raises(RecordingError, match="no sample ids for these targets"):
            recorder.targets(y)
    assert recorder.data_map.count.unique().tolist() == [1]


def numbered(*ids):
    """Batches (ids, inputs, targets) whose inputs are the ids."""
    return [(torch.tensor(part), torch.tensor(part), torch.zeros(len(part), dtype=torch.long)) for part in ids]


def give(loss, rows):
    return loss(torch.zeros(rows, 3, requires_grad=True), torch.zeros(rows, dtype=torch.long))


@pytest.mark.parametrize("left", ["end", "break", "close"])
@pytest.mark.parametrize("used", [False, True])
def test_a_loop_inside_another_puts_the_outer_ids_back(left, used):
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 8) as recorder:
        for x, y in recorder.batches(numbered([0, 1], [2, 3])):
            inner = iter(recorder.batches(numbered([4, 5], [6, 7])))
            for _ in inner:
                if used:
                    give(loss, 2)
                if left != "end":
                    break
            if left == "close":
                inner.close()
            del inner
            give(loss, len(x))
            with pytest.raises(RecordingError, match="used by an earlier forward"):
                give(loss, len(y))
    second = 2 if used and left == "end" else 0
    assert recorder.data_map.count.flatten().tolist() == [1] * 4 + [2 * used] * 2 + [second] * 2


def test_a_task_seen_before_an_inner_loop_waits_for_the_others():
    losses = losses_of(MIXED)

    def call(*names):
        for name, classes in zip(MIXED.names, MIXED.num_classes, strict=True):
            if name in names:
                logits = torch.zeros(2, classes) if classes > 1 else torch.zeros(2)
                losses[name](logits.requires_grad_(), torch.zeros(2, dtype=torch.long if classes > 1 else torch.float))

    with pymtg.record(losses, MIXED, 4, missing=True) as recorder:
        for _ in recorder.batches(numbered([0, 1])):
            call("kind")
            for _ in recorder.batches(numbered([2, 3])):
                call("odd")
                break
            call("odd", "size")
    assert recorder.data_map.count.tolist() == [[1, 1, 1]] * 2 + [[0, 1, 0]] * 2


@pytest.mark.parametrize("batches", [1, 2])
def test_two_loops_that_take_turns_are_an_error(batches):
    loss = nn.CrossEntropyLoss()
    first, second = numbered(*[[0, 1]] * batches), numbered(*[[2, 3]] * batches)
    with pymtg.record(loss, ONE, 4) as recorder:
        pairs = zip(recorder.batches(first), recorder.batches(second), strict=False)
        with pytest.raises(RecordingError, match="cannot take turns"):
            [give(loss, 2) for _ in pairs]
        for _ in recorder.batches(first):
            give(loss, 2)
        assert recorder.data_map.count.flatten().tolist() == [batches, batches, 1, 1]


def test_a_loop_that_is_never_gone_on_with_is_in_nobodys_way():
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 4) as recorder:
        abandoned = iter(recorder.batches(numbered([0, 1], [0, 1])))
        next(abandoned)
        for _ in range(2):
            for _ in recorder.batches(numbered([2, 3], [2, 3])):
                give(loss, 2)
        next(iter(recorder.batches(numbered([2, 3]))))
        recorder.snapshot(1)
    assert recorder.data_map.count.flatten().tolist() == [0, 0, 4, 4]
    with recorder:
        next(iter(recorder.batches(numbered([0, 1]))))  # closed at once, and its ids stay
        give(loss, 2)
        next(abandoned)
        give(loss, 2)
    del abandoned
    assert recorder.data_map.count.flatten().tolist() == [2, 2, 4, 4]


class Encoding(UserDict):
    """A mapping with a method, like those of tokenizers."""

    def to(self, device):
        return device


class Sharing(UserDict):
    def __copy__(self):
        other = type(self)()
        other.data = self.data
        return other


class Stubborn(dict):
    def __delitem__(self, name):
        raise RuntimeError(name)

    __setitem__ = __delitem__


class Pair(NamedTuple):
    x: torch.Tensor
    y: int


@pytest.mark.parametrize(
    ("kind", "kept"),
    [(dict, dict), (OrderedDict, OrderedDict), (Encoding, Encoding), (Sharing, dict), (Stubborn, dict)],
)
def test_what_is_left_of_a_mapping_keeps_its_type(kind, kept):
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, 4)
    samples = [kind({"x": torch.ones(2), "y": 1}) for _ in range(4)]
    wrapped = with_ids(samples)
    for _ in range(2):
        assert type(wrapped[3]) is kept
        assert wrapped[3]["sample_id"] == 3
        assert "sample_id" not in samples[3]
    (batch,) = recorder.batches(DataLoader(wrapped, batch_size=4))
    assert type(batch) is kept
    assert set(batch) == {"x", "y"}
    given = [kind({"x": torch.ones(2), "sample_id": torch.tensor([1, 0])})]
    for _ in range(2):
        (batch,) = recorder.batches(given)
        assert type(batch) is kept
        assert list(batch) == ["x"]
    (batch,) = recorder.batches([MappingProxyType(dict(given[0]))])
    assert type(batch) is MappingProxyType
    assert list(batch) == ["x"]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_left_of_a_named_tuple_is_one(workers):
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, 4)
    wrapped = with_ids([Pair(torch.ones(2), at) for at in range(4)])
    assert wrapped[2][0] == wrapped[2].sample_id == wrapped[2].y == 2
    assert pickle.loads(pickle.dumps(wrapped[2])).y == 2
    (batch,) = recorder.batches(DataLoader(wrapped, batch_size=4, num_workers=workers))
    assert type(batch) is Pair
    assert batch.y.tolist() == [0, 1, 2, 3]
    named = namedtuple("named", ["x", "sample_id"])
    assert with_ids([named(5, 6)])[0] == (0, 5, 6)
    (batch,) = recorder.batches([named(torch.tensor([1]), torch.zeros(1))])
    assert type(batch) is tuple


class Weighted(DistributedSampler):
    """Draws with replacement, more than a share of the samples."""

    def __iter__(self):
        return iter(range(10)) if self.rank else iter([*range(10), *range(5)])

    def __len__(self):
        return 10 if self.rank else 15


@pytest.mark.parametrize("kind", [DistributedSampler, Weighted])
def test_only_what_torchs_sampler_repeats_is_left_out(kind):
    dataset = TensorDataset(torch.zeros(11), torch.zeros(11, dtype=torch.long))
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, 11) as recorder:
        for rank in range(2):
            loader = DataLoader(with_ids(dataset), 4, sampler=kind(dataset, 2, rank, shuffle=False))
            for x, _ in recorder.batches(loader):
                give(loss, len(x))
    assert recorder.data_map.count.flatten().tolist() == (
        [1] * 11 if kind is DistributedSampler else [3] * 5 + [2] * 5 + [0]
    )


def test_a_loader_of_dicts_and_one_without_ids():
    samples = [{"x": torch.zeros(2), "y": 1} for _ in range(4)]
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, M)
    (batch,) = recorder.batches(DataLoader(with_ids(samples), batch_size=4))
    assert set(batch) == {"x", "y"}
    for loader in ([(torch.zeros(4, 2), torch.zeros(4))], [{"x": torch.zeros(2)}], [torch.zeros(3)], [(1, 2)]):
        with pytest.raises(InvalidTypeError, match="loader must yield sample ids first"):
            list(recorder.batches(loader))


@pytest.mark.parametrize("ignored", [-100, 0, 255, -1])
def test_ignore_index_of_the_loss_is_honoured(ignored):
    inputs, labels = data(ONE)
    target = labels[:, 0].clone()
    target[::3] = ignored
    for dtype in (torch.int64, torch.uint8) if ignored in (0, 255) else (torch.int64,):
        loss = nn.CrossEntropyLoss(ignore_index=ignored)
        y = target.to(dtype)
        with pymtg.record(loss, ONE, M, missing=True) as recorder:
            recorder.ids(torch.arange(M))
            loss(inputs[:, :3].requires_grad_(), y)
        seen = [(inputs[:, :3], target[:, None], torch.arange(M))]
        assert_same_map(recorder.data_map, fused_map(seen, ONE, missing=True, ignore_index=ignored))
    with pymtg.record(loss, ONE, M) as recorder:
        recorder.ids(torch.arange(M))
        with pytest.raises(MissingLabelError, match="missing=True"):
            loss(inputs[:, :3], y)


def test_missing_labels_in_floating_point_targets():
    inputs, labels = data(BINARY)
    targets = labels.float()
    targets[::3, 1], targets[1::3, 2] = torch.nan, -100
    loss = nn.BCEWithLogitsLoss(reduction="none")
    with pymtg.record(loss, BINARY, M, missing=True) as recorder:
        recorder.ids(np.arange(M))
        loss(inputs[:, :4].requires_grad_(), targets)
    integers = torch.where(targets.isnan(), -100, targets).long()
    assert_same_map(recorder.data_map, fused_map([(inputs[:, :4], integers, torch.arange(M))], BINARY, missing=True))
    own = pymtg.record(None, BINARY, M, missing=True, ignore_index=7)
    own.record(inputs[:, :4], torch.where(integers == -100, 7, integers), torch.arange(M))
    assert_same_map(own.data_map, recorder.data_map)


def test_functional_losses_are_recorded_by_hand():
    inputs, labels = data(MIXED)
    with pymtg.record(None, MIXED, M) as recorder:
        recorder.record(torch.randn(M, 6, requires_grad=True), labels, torch.arange(M))
        assert recorder.num_batches == 1
        with torch.no_grad():
            recorder.record(torch.zeros(M, 6), labels, torch.arange(M))
        with recorder.paused():
            recorder.record(torch.zeros(M, 6), labels, torch.arange(M))
    assert recorder.num_batches == 1
    with pytest.raises(RecordingError, match="without a module"):
        recorder.attach()
    with pytest.raises(InvalidArgumentError, match=r"logits of the model must be \[B, 6\]; got \[41, 5\]"):
        recorder.record(inputs, labels, torch.arange(M))
    with pytest.raises(InvalidTypeError, match=r"'cross_entropy'.*recorder\.record"):
        pymtg.record(F.cross_entropy, ONE, M)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: (logits, "hidden"),
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: {"logits": logits},
        lambda logits: {"kind": logits[:, :3], "odd": logits[:, 3], "size": logits[:, 4:]},
    ],
    ids=["tensor", "tuple", "attribute", "key", "by task"],
)
def test_outputs_of_models(wrap):
    class Model(nn.Module):
        def forward(self, x):
            return wrap(x * 2)

    inputs, labels = torch.randn(M, 6, requires_grad=True), data(MIXED)[1]
    model = Model()
    with pymtg.record(model, MIXED, M) as recorder:
        recorder.batch(torch.arange(M), labels)
        model(inputs)
        model.eval()
        model(inputs)
    assert_same_map(recorder.data_map, fused_map([(inputs.detach() * 2, labels, torch.arange(M))], MIXED))


@pytest.mark.parametrize("output", [3, (), {"scores": torch.zeros(2, 6)}, None.__class__])
def test_outputs_that_hold_no_logits(output):
    class Model(nn.Module):
        def forward(self, x):
            return output

    model = Model()
    with pymtg.record(model, MIXED, M) as recorder:
        recorder.batch([0, 1], torch.zeros(2, 3, dtype=torch.long))
        with pytest.raises(InvalidTypeError, match="must return logits"):
            model(torch.zeros(2, 6))
    assert recorder.num_batches == 0


# Which forwards count


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


# Ids and forwards out of step


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


# Losses by task


def call(losses, names, rows=2):
    for name in names:
        classes = MIXED.num_classes[MIXED.index(name)]
        target = torch.zeros(rows, 1) if classes == 1 else torch.zeros(rows, dtype=torch.long)
        losses[name](torch.zeros(rows, classes), target)


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


# What cannot be recorded


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


# Attaching, copies, maps


def step(loss, recorder=None, ids=(0, 1)):
    if recorder is not None:
        recorder.ids(ids)
    loss(torch.zeros(len(ids), 3, requires_grad=True), torch.zeros(len(ids), dtype=torch.long)).backward()


def test_attaching_twice_and_detaching_in_any_order():
    loss = nn.CrossEntropyLoss()
    first, second = pymtg.record(loss, ONE, M), pymtg.record(loss, ONE, M)
    with pytest.raises(RecordingError, match=r"not attached.*attach\(\)"):
        first.ids([0])
    assert first.attach() is first
    with pytest.raises(RecordingError, match="attached already"):
        first.attach()
    with pytest.raises(RecordingError, match="attached already"), first:
        pass
    second.attach()
    first.ids((0, 1))
    step(loss, second)
    first.detach()
    first.detach()
    step(loss, second)
    second.detach()
    step(loss)
    first.attach()
    step(loss, first)
    assert (first.num_batches, second.num_batches) == (2, 2)
    first.detach()
    assert not loss._forward_hooks
    assert not loss._forward_hooks_with_kwargs
    assert not loss._forward_hooks_always_called


def test_copies_and_pickles_of_a_hooked_module_are_not_recorded():
    loss = Focal()
    x, y = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 4)
    with pymtg.record(loss, BINARY, M) as recorder:
        for clone in (copy.deepcopy(loss), copy.copy(loss), pickle.loads(pickle.dumps(loss))):
            recorder.ids([0, 1])
            clone(x, y)
            assert recorder.num_batches == 0
        loss(x, y)
    assert recorder.num_batches == 1
    for clone in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        clone(x, y)
    other = copy.deepcopy(recorder)
    assert not other.attached
    assert_same_map(other.data_map, recorder.data_map)


def test_no_graph_is_kept_alive():
    losses = losses_of(MIXED)
    leaf = torch.zeros(2, 6, requires_grad=True)
    with pymtg.record(losses, MIXED, M, missing=True) as recorder:
        recorder.ids([0, 1])
        logits = leaf * 2
        alive = weakref.ref(logits)
        part = logits[:, :3]
        losses["kind"](part, torch.tensor([0, 1]))
        (kept, _) = recorder._batch.parts["kind"]
        assert kept.grad_fn is None
        assert not kept.requires_grad
        del logits, part
        gc.collect()
        assert alive() is None


def test_an_existing_map_goes_on(tmp_path):
    loss = nn.CrossEntropyLoss()
    with pymtg.record(loss, ONE, M) as recorder:
        step(loss, recorder)
        snapshot = recorder.snapshot(0)
    assert snapshot.count[:2].flatten().tolist() == [1, 1]
    recorder.data_map.save(tmp_path / "map.safetensors")
    loaded = DataMap.load(tmp_path / "map.safetensors")
    with pymtg.record(loss, ONE, data_map=loaded) as resumed:
        step(loss, resumed)
        resumed.snapshot(1)
        with pytest.raises(RecordingError, match=r"nothing was recorded before snapshot\(2\)"):
            resumed.snapshot(2)
    assert resumed.data_map is loaded
    assert loaded.count[:2].flatten().tolist() == [2, 2]
    assert [s.epoch for s in loaded.snapshots] == [0, 1]


def test_a_new_map_moves_to_the_logits_and_a_given_one_stays():
    loss = nn.CrossEntropyLoss()
    logits, target = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    recorder = pymtg.record(loss, ONE, M)
    kept = recorder.data_map
    assert kept.device.type == "cpu"
    with recorder:
        recorder.ids([0, 1])
        loss(logits, target)
    assert recorder.data_map is kept
    assert kept.device.type == "meta"
    given = DataMap(M, ONE)
    with pymtg.record(loss, ONE, data_map=given) as recorder:
        recorder.ids([0, 1])
        with pytest.raises(InvalidArgumentError, match="data_map must be on the logits' device meta; it is on cpu"):
            loss(logits, target)


def test_what_it_says_of_itself():
    recorder = pymtg.record(nn.CrossEntropyLoss(), ONE, M)
    assert isinstance(recorder, Recorder)
    assert repr(recorder).startswith("Recorder(CrossEntropyLoss; detached, 0 batches, DataMap(41 samples")
    with recorder:
        assert "; recording, " in repr(recorder)
        recorder.pause()
        assert "; paused, " in repr(recorder)


# torch.compile


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("fullgraph", [False, True])
    def test_a_compiled_module_is_recorded_outside_its_graph(self, fullgraph):
        loss = torch.compile(nn.CrossEntropyLoss(), backend="eager", fullgraph=fullgraph)
        with pymtg.record(loss, ONE, M) as recorder:
            step(loss, recorder)
            step(loss, recorder)
            loss.eval()
            step(loss)
        assert recorder.data_map.count[:3].flatten().tolist() == [2, 2, 0]

    @pytest.mark.parametrize("names", [("input", "target"), ("target", "input"), ("target",)])
    def test_a_compiled_loss_takes_its_arguments_by_name(self, names):
        loss = torch.compile(nn.CrossEntropyLoss(), backend="eager")
        logits, target = torch.eye(3, requires_grad=True), torch.tensor([0, 1, 1])
        given = {"input": logits, "target": target}
        with pymtg.record(loss, ONE, M) as recorder:
            recorder.ids([0, 1, 2])
            loss(*(given[n] for n in ("input", "target") if n not in names), **{n: given[n] for n in names})
        assert recorder.data_map.correctness[:3].flatten().tolist() == [1, 1, 0]

    def test_the_compiler_finds_nothing_to_warn_of_in_a_hook(self):
        loss, target = nn.CrossEntropyLoss(), torch.zeros(2, dtype=torch.long)
        with pymtg.record(loss, ONE, M) as recorder, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            recorder.ids([0, 1])
            torch.compile(lambda x: loss(x, target), backend="eager")(torch.zeros(2, 3, requires_grad=True))
        assert not [str(one.message) for one in told if "_recorder.py" in str(one.message)]

    def test_a_hook_inside_a_compiled_region_breaks_the_graph(self):
        loss = nn.CrossEntropyLoss()
        target = torch.zeros(2, dtype=torch.long)
        with pymtg.record(loss, ONE, M) as recorder:
            compiled = torch.compile(lambda x: loss(x, target), backend="eager")
            for _ in range(2):
                recorder.ids([0, 1])
                compiled(torch.zeros(2, 3, requires_grad=True)).backward()
            assert recorder.num_batches == 2
            torch._dynamo.reset()
            whole = torch.compile(lambda x: loss(x, target), backend="eager", fullgraph=True)
            with pytest.raises(torch._dynamo.exc.Unsupported):
                whole(torch.zeros(2, 3, requires_grad=True))

    def test_a_hook_that_comes_after_compilation_is_found_out_at_the_snapshot(self):
        loss = nn.CrossEntropyLoss()
        compiled = torch.compile(loss, backend="eager")
        step(compiled)
        with pymtg.record(loss, ONE, M) as recorder:
            step(compiled, recorder)
            with pytest.raises(RecordingError, match="compiled before it was hooked"):
                recorder.snapshot(0)


@pytest.mark.parametrize("module", ["", "._recorder", "._reading", "._sources", "._loader"])
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"pymtg.hooks{module}")).failed == 0


def test_regression_tasks_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'x' is a regression; MultiTaskLoss records both kinds"):
        pymtg.record(None, TaskLayout.regression(["x"]), num_samples=3)


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
