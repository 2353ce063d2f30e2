"""Maps in host memory: a batch's probabilities travel there, in order, and every read waits for them."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
import time

import pytest
import torch
from _cases import random_case, random_layout

from pymtg import DataMap, MultiTaskLoss, TaskLayout, _courier
from pymtg.errors import InvalidArgumentError, SampleIdError
from pymtg.functional import linear_multitask_cross_entropy, multitask_cross_entropy


def assert_same(got: DataMap, expected: DataMap) -> None:
    assert torch.equal(got.count, expected.count)
    assert torch.equal(got.correctness, expected.correctness)
    assert got.num_rejected == expected.num_rejected
    torch.testing.assert_close(got.mean, expected.mean, rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(got.std, expected.std, rtol=1e-5, atol=5e-7)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32], ids=str)
def test_as_on_the_device(
    missing: bool, ids_dtype: torch.dtype, backend: str, generator: torch.Generator, poisoned: None
) -> None:
    """Twenty steps on few samples, so that most come again in the next step; rows refused, labels missing."""
    layout = random_layout([1, 3, 2, 1], generator, weighted=True)
    there, here = (DataMap(6, layout, missing=missing, storage=storage) for storage in ("cpu", None))
    assert (there.storage, here.storage, there.device) == ("cpu", None, torch.device("cpu"))
    for step in range(20):
        case = random_case(layout, 9, generator, missing="some" if missing else "none")
        with torch.no_grad():
            case.logits[step % 9, 0] = torch.inf if step % 5 == 0 else 0.0
            case.targets[step % 9, 0] = 0  # there, and of infinite loss
        ids = torch.randint(6, (9,), generator=generator).to(ids_dtype)
        for data_map in (there, here):
            losses = multitask_cross_entropy(
                case.logits, case.targets, layout, data_map=data_map, sample_ids=ids, backend=backend
            )
            losses.sum().backward()
        ids.zero_()  # the caller's own again
    assert_same(there, here)
    assert here.num_rejected > 0


def test_update_module_and_linear(generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [1, 3])
    there, here = DataMap(5, layout, storage="cpu"), DataMap(5, layout)
    for data_map in (there, here):
        generator.manual_seed(1)
        ids, targets = torch.tensor([4, 0, 4]), torch.tensor([[1, 2], [0, 0], [0, 1]])
        data_map.update(torch.rand(3, 2, generator=generator), ids)
        x = torch.randn(3, 4, generator=generator)
        MultiTaskLoss(layout, data_map)(x, targets, ids)
        linear_multitask_cross_entropy(x, x.new_ones(4, 4), None, targets, layout, data_map=data_map, sample_ids=ids)
    assert_same(there, here)


def test_a_label_in_uint8_that_minus_100_would_be() -> None:
    """Its row is refused and counted as any other whose loss is not finite."""
    layout, logits = TaskLayout(["a"], [200]), torch.zeros(2, 200)
    logits[1, 5] = torch.inf
    data_map = DataMap(2, layout, missing=True, storage="cpu")
    targets = torch.tensor([[156], [156]], dtype=torch.uint8)
    multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=torch.arange(2))
    assert data_map.count.tolist() == [[1], [0]]
    assert data_map.num_rejected == 1


def test_reads_wait_and_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """With recording held up, steps go on until four batches are on their way; a read waits for all."""
    layout = TaskLayout.binary(["a"])
    data_map = DataMap(3, layout, storage="cpu")
    go, real = threading.Event(), _courier._cpp.record

    def held_up(*arguments):
        go.wait(20)
        real(*arguments)

    monkeypatch.setattr(_courier._cpp, "record", held_up)
    p, ids = torch.full((1, 1), 0.5), torch.tensor([1])
    for _ in range(_courier.MOST_ON_THE_WAY):
        data_map.update(p, ids)
    assert not data_map._state.counts.any()
    fifth = threading.Thread(target=data_map.update, args=(p, ids))
    fifth.start()
    time.sleep(0.05)
    assert fifth.is_alive()
    go.set()
    fifth.join()
    assert data_map.count[1].tolist() == [_courier.MOST_ON_THE_WAY + 1]


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "save", "merge", "gram", "snapshot"])
def test_everything_reads_what_is_on_its_way(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    layout = TaskLayout.binary(["a", "b"])
    data_map, expected = DataMap(3, layout, storage="cpu"), DataMap(3, layout)
    real = _courier._cpp.record

    def slow(*arguments):
        time.sleep(0.02)
        real(*arguments)

    p, ids = torch.tensor([[0.5, 0.75], [0.25, 1.0]]), torch.tensor([1, 2])
    expected.update(p, ids)
    monkeypatch.setattr(_courier._cpp, "record", slow)
    data_map.update(p, ids)
    if how == "gram":
        assert torch.equal(data_map.gram(), expected.gram())
        return
    if how == "save":
        data_map.save(tmp_path / "map")
    got = {
        "deepcopy": lambda: copy.deepcopy(data_map),
        "pickle": lambda: pickle.loads(pickle.dumps(data_map)),
        "state_dict": lambda: _loaded(data_map),
        "save": lambda: DataMap.load(tmp_path / "map", storage="cpu"),
        "merge": lambda: DataMap(3, layout, storage="cpu").merge_(data_map),
        "snapshot": lambda: data_map.snapshot(1) and data_map,
    }[how]()
    assert_same(got, expected)
    got.update(p, ids)
    expected.update(p, ids)
    assert_same(got, expected)


def _loaded(data_map: DataMap) -> DataMap:
    restored = DataMap(3, data_map.layout)
    restored.load_state_dict(data_map.state_dict())
    return restored


def test_checkpointing_counts_once() -> None:
    from torch.utils.checkpoint import checkpoint

    layout = TaskLayout.binary(["a"])
    data_map = DataMap(3, layout, storage="cpu")
    logits = torch.zeros(2, 1, requires_grad=True)
    ids, targets = torch.tensor([0, 2]), torch.ones(2, 1, dtype=torch.long)
    checkpoint(
        lambda x: multitask_cross_entropy(x, targets, layout, data_map=data_map, sample_ids=ids).sum(),
        logits,
        use_reentrant=False,
    ).backward()
    assert data_map.count[:, 0].tolist() == [1, 0, 1]


def test_reset_and_errors() -> None:
    layout = TaskLayout.binary(["a"])
    data_map = DataMap(3, layout, storage="cpu")
    data_map.update(torch.ones(1, 1), torch.tensor([0]))
    data_map.reset()
    assert not data_map.count.any()
    with pytest.raises(SampleIdError, match="row 0 holds 3"):
        multitask_cross_entropy(
            torch.zeros(1, 1), torch.ones(1, 1).long(), layout, data_map=data_map, sample_ids=torch.tensor([3])
        )
    with pytest.raises(InvalidArgumentError, match="targets must be"):
        multitask_cross_entropy(
            torch.zeros(1, 1), torch.full((1, 1), 7), layout, data_map=data_map, sample_ids=torch.tensor([0])
        )
    assert not data_map.count.any()
    with pytest.raises(InvalidArgumentError, match="storage must be 'cpu' or None; got 'disk'"):
        DataMap(3, layout, storage="disk")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked")
def test_a_forked_process_goes_on_with_the_map() -> None:
    layout = TaskLayout.binary(["a"])
    data_map = DataMap(3, layout, storage="cpu")
    p, ids = torch.full((3, 1), 0.5), torch.arange(3)

    def go_on() -> None:
        data_map.update(p, ids)
        assert data_map.count.eq(2).all()

    data_map.update(p, ids)  # on its way, or recorded by a thread that the other process does not have
    process = multiprocessing.get_context("fork").Process(target=go_on)
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 0
    assert data_map.count.eq(1).all()
