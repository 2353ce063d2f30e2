"""Trainers, hooks and an assignment's draws on a device: what they learn there, and that their steps read nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pymtg
from pymtg import BranchedLoss, DMTGTrainer, STGTrainer, TaskLayout, record
from pymtg.errors import InvalidArgumentError
from pymtg.nets import BranchedNet, TaskAssignment, mlp
from pymtg.trainers import TrainConfig, _batches
from pymtg.trainers.results import EpochRecord

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KERNELS = [name for name in ("triton", "cuda") if name in pymtg.available_backends()]
LAYOUT = TaskLayout(["a", "b", "c", "d", "e"], [1, 1, 1, 3, 4])
TRAINERS: dict[str, type[STGTrainer] | type[DMTGTrainer]] = {"stg": STGTrainer, "dmtg": DMTGTrainer}


def fitted(name: str, arrays: tuple[Tensor, Tensor], *, resume: bool = False, **options: Any) -> Any:
    trainer = TRAINERS[name](mlp(8, (16,)), LAYOUT, num_groups=2, epochs=2, seed=0, **options)
    return trainer.fit(arrays, resume=resume)


@pytest.fixture(params=["reference", *KERNELS])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    pymtg.set_backend(request.param)
    yield request.param
    pymtg.set_backend(None)
    pymtg.check_errors()


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def arrays(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(200, 8, generator=generator)
    scores = inputs @ torch.randn(8, LAYOUT.num_tasks, generator=generator)
    most = torch.tensor(LAYOUT.num_classes).clamp(min=2) - 1
    return inputs, (scores + 1).floor().long().clamp(min=0).minimum(most)


@pytest.mark.parametrize("name", TRAINERS)
def test_as_on_the_cpu(name: str, arrays: tuple[Tensor, Tensor], backend: str) -> None:
    """Up to rounding; which groups come of it is left out, since Adam makes whole steps of theta's."""
    there = fitted(name, arrays, device="cuda")
    pymtg.set_backend(None)
    here = fitted(name, arrays, device="cpu")
    network = there.models_[0] if name == "stg" else there.model_
    assert next(network.parameters()).is_cuda
    losses = [[epoch.loss for epoch in found.result_.stages[0].history] for found in (there, here)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    if name == "stg":
        assert torch.equal(there.data_map_.count.cpu(), here.data_map_.count)
        torch.testing.assert_close(there.data_map_.mean.cpu(), here.data_map_.mean, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_goes_on_with_its_checkpoint(
    name: str, arrays: tuple[Tensor, Tensor], backend: str, tmp_path: Path
) -> None:
    def stop(stage: str, record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyError(stage)

    seen = []
    whole = fitted(name, arrays, device="cuda")
    with pytest.raises(KeyError):
        fitted(name, arrays, device="cuda", checkpoint_dir=tmp_path, on_epoch_end=stop)
    told = {"on_epoch_end": lambda stage, record: seen.append((stage, record.epoch))}
    resumed = fitted(name, arrays, device="cuda", checkpoint_dir=tmp_path, resume=True, **told)
    assert seen[0] == ("joint" if name == "stg" else "dmtg", 2)
    losses = [[epoch.loss for epoch in found.result_.stages[0].history] for found in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("where", ["on the device", "in host memory", "dataset"])
@pytest.mark.parametrize("some", [False, True])
def test_no_host_read_from_batch_to_batch(
    where: str, some: bool, arrays: tuple[Tensor, Tensor], no_waiting: Callable[[], None], monkeypatch
) -> None:
    """Targets are floating-point numbers, which are brought into another form on the way; of some tasks, or of all."""
    monkeypatch.setattr(_batches, "_RESIDENT_BYTES", 0 if where == "in host memory" else 2**31)
    given = (arrays[0], arrays[1].float())
    source = _batches.batch_source(
        list(zip(*given, strict=True)) if where == "dataset" else given,
        LAYOUT,
        TrainConfig(batch_size=32, device="cuda"),
        "data",
    )
    tasks = [3, 1] if some else list(range(LAYOUT.num_tasks))
    batches = (source.select(tasks) if some else source).shuffled(torch.Generator().manual_seed(0))
    found = [next(batches)]
    no_waiting()
    found += batches
    torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.is_cuda for batch in found for tensor in batch)
    ids, inputs, targets = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    assert ids.sort().values.tolist() == list(range(200))
    assert torch.equal(inputs, arrays[0][ids])
    assert torch.equal(targets.long(), arrays[1][ids][:, tasks])


@pytest.mark.parametrize("backend", KERNELS, indirect=True)  # plain torch reads the labels
@pytest.mark.parametrize("sampling", ["gumbel", "hard", "softmax"])  # shares per row are left to plain torch
def test_no_host_read_in_a_step_of_dmtg(
    sampling: str, arrays: tuple[Tensor, Tensor], backend: str, no_waiting: Callable[[], None]
) -> None:
    net = BranchedNet(lambda: nn.Linear(8, 6), 3, LAYOUT, features=6).cuda()
    assignment, loss = TaskAssignment(LAYOUT.num_tasks, 3, sampling=sampling).cuda(), BranchedLoss(LAYOUT).cuda()
    inputs, targets = (one.cuda() for one in arrays)

    def step() -> None:
        loss(net(inputs), targets, assignment.sample(0.5)).backward()

    step()
    first = [parameter.grad.clone() for parameter in net.parameters()]
    no_waiting()
    step()
    torch.cuda.set_sync_debug_mode("default")
    second = [parameter.grad for parameter in net.parameters()]
    assert any(gradient.any() for gradient in second)
    if sampling == "softmax":  # nothing is drawn: the same gradient, added again
        torch.testing.assert_close(second, [2 * gradient for gradient in first])


@pytest.mark.parametrize("backend", KERNELS, indirect=True)  # plain torch reads the labels
@pytest.mark.parametrize("ids_on", ["cuda", "cpu"])
@pytest.mark.parametrize("per_task", [False, True])
def test_no_host_read_in_a_hooked_step(ids_on: str, per_task: bool, backend: str, no_waiting) -> None:
    layout = TaskLayout.binary(["a", "b"])
    whole, each = nn.BCEWithLogitsLoss(), {"a": nn.BCEWithLogitsLoss(), "b": nn.BCEWithLogitsLoss()}
    logits, targets = torch.randn(30, 2).cuda().requires_grad_(), torch.randint(2, (30, 2)).float().cuda()
    with record(each if per_task else whole, layout, num_samples=40) as recorder:

        def step() -> None:
            ids = torch.arange(30, device=ids_on)
            recorder.ids(ids)
            if per_task:
                sum(one(logits[:, t], targets[:, t]) for t, one in enumerate(each.values())).backward()
            else:
                whole(logits, targets).backward()
            ids.fill_(39)  # the caller's own again

        step()
        no_waiting()
        step()
        torch.cuda.set_sync_debug_mode("default")
        assert recorder.data_map.device.type == "cuda"
        assert recorder.data_map.count[:, 0].tolist() == [2] * 30 + [0] * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_soft_label_of_a_hooked_loss_is_told(dtype: torch.dtype, backend: str) -> None:
    """Where the labels are read, or where the map is."""
    logits = torch.zeros(2, 2, device="cuda", dtype=dtype, requires_grad=True)
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.5]], device="cuda", dtype=dtype)
    criterion = nn.BCEWithLogitsLoss()
    with record(criterion, TaskLayout.binary(["a", "b"]), num_samples=2) as recorder:

        def step_and_snapshot() -> None:
            recorder.ids(torch.arange(2))
            criterion(logits, targets)
            recorder.snapshot(1)

        with pytest.raises(InvalidArgumentError, match="a soft label has no gold probability; row 1, column 1"):
            step_and_snapshot()


def test_a_device_that_is_not_there() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(InvalidArgumentError, match=f"'cuda:{count}', and torch sees {count} CUDA device"):
        TrainConfig(device=f"cuda:{count}")
    assert TrainConfig(device="cuda").torch_device == torch.device("cuda", torch.cuda.current_device())
