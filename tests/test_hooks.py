"""Recording from loops that somebody else wrote: the same map as the fused loss, and no other trace."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _hooked import BINARY, MIXED, ONE, Focal, M, assert_same_map, data, fused_map, losses_of, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pymtg
from pymtg.data import with_ids
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError
from pymtg.hooks import RecordingError

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
