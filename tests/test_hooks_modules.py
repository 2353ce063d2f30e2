"""Hooked modules and their recorder: attaching, copies, maps, torch.compile."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import pickle
import warnings
import weakref

import pytest
import torch
from _hooked import BINARY, MIXED, ONE, Focal, M, assert_same_map, losses_of, step
from torch import nn

import pymtg
from pymtg import DataMap
from pymtg.errors import InvalidArgumentError
from pymtg.hooks import Recorder, RecordingError


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
        (kept, _) = recorder._at_hand.batch.parts["kind"]
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
