"""That the pretended device does what tests on it count on; run by tests/test_host_device.py where the device is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

WAITING = {
    "item": lambda x: x[0].item(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask of several": lambda x: x.index_put_((x > 0,), x.clone()),
    "from the host": lambda x: x.copy_(torch.ones(3)),
    "from pageable memory": lambda x: torch.ones(3).to("cuda", non_blocking=True),
    "to pageable memory": lambda x: torch.empty(3).copy_(x, non_blocking=True),
    "tensor": lambda x: torch.tensor([1.0], device="cuda"),
    "one element": lambda x: x.__setitem__(0, 1.0),
}


@pytest.fixture
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_network_learns_there_as_on_the_cpu() -> None:
    weights = []
    inputs, targets = torch.randn(20, 4), torch.randint(3, (20,))
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        for _ in range(5):
            nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append({name: one.cpu() for name, one in model.state_dict().items()})
    assert all(parameter.is_cuda for parameter in model.parameters())
    torch.testing.assert_close(weights[1], weights[0])


def test_two_devices_in_one_operator_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, device="cuda").index_put_((torch.tensor([0, 1]).cuda(),), torch.ones(2))
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        torch.ones(3, device="cuda").numpy()
    assert (torch.ones(3, device="cuda") + torch.tensor(1.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_an_error_where_it_is_forbidden(name, no_waiting) -> None:
    x, before = torch.ones(3, device="cuda"), torch.ops.host_device.waits()
    assert torch.cuda.get_sync_debug_mode() == 2
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        WAITING[name](x)
    assert torch.ops.host_device.waits() == before + 1


def test_what_does_not_wait_is_none(no_waiting) -> None:
    x = torch.ones(3, device="cuda")
    pinned = torch.empty(3, pin_memory=True)
    assert pinned.is_pinned()
    pinned[1:].copy_(x[1:], non_blocking=True)
    x.copy_(torch.zeros(3).pin_memory(), non_blocking=True)
    x[:2] = 1.0
    x[x > 7] = 2.0
    x[0].fill_(4)
    torch.cuda.set_sync_debug_mode("default")
    assert x.tolist() == [4, 1, 0]
    assert pinned[1:].tolist() == [1, 1]


def test_a_graph_runs_when_it_is_replayed_and_not_before() -> None:
    x, total = torch.ones(3, device="cuda"), torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = x * 2
        total += doubled.abs().sum()
    assert total.item() == 0
    x.fill_(5)
    for _ in range(2):
        graph.replay()
    assert doubled.tolist() == [10, 10, 10]
    assert total.item() == 60
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        x[0].item()


def test_the_profiler_tells_of_launches() -> None:
    x = torch.ones(3, device="cuda")
    with torch.profiler.profile() as profile:
        torch.empty(3, device="cuda")
        x.view(3, 1)[1:].mul_(x[1:, None] + 1)
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_device) == 2, on_device


def test_memory_is_not_zero_and_poisoned_where_asked_for() -> None:
    assert torch.empty(100, device="cuda").ne(0).all()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device="cuda").isnan().all()
        assert torch.empty((3, 2), device="cuda").t().contiguous().new_empty(4).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_random_states_are_its_own() -> None:
    of_cpu, state = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = torch.randn(5, device="cuda")
    assert torch.equal(torch.get_rng_state(), of_cpu)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.randn(5, device="cuda"), first)
    torch.manual_seed(3)
    again = torch.randn(5, device="cuda")
    torch.cuda.manual_seed_all(3)
    assert torch.equal(torch.randn(5, device="cuda"), again)


def test_views_share_memory_and_outputs_are_resized() -> None:
    x = torch.arange(6.0, device="cuda")
    x.view(2, 3)[1].mul_(10)
    x.unfold(0, 2, 2)[0].zero_()
    assert x.tolist() == [0, 0, 2, 30, 40, 50]
    out = torch.empty(0, device="cuda")
    torch.cat([x, x], out=out)
    assert out.shape == (12,)
    assert out.is_cuda


def test_tensors_are_copied_saved_and_restored(tmp_path) -> None:
    import copy

    x = torch.randn(5, device="cuda")
    torch.save(x, tmp_path / "x.pt")
    for again in (copy.deepcopy(x), torch.load(tmp_path / "x.pt")):
        assert again.is_cuda
        assert torch.equal(again, x)
        assert again.data_ptr() != x.data_ptr()
