"""The GPU backends on a device: the grid of cases, maps, graphs, compilation, streams, 20 equal runs, no host reads."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator

import pytest
import torch
from _cases import CLASSES, MISSING, ROWS, STRIDES, random_case, random_layout
from _loss_checks import check
from _settings import LOGIT_DTYPES, TARGET_DTYPES
from torch import Tensor, nn

import pymtg
from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, SampleIdError
from pymtg.functional import (
    assigned_cross_entropy,
    linear_multitask_cross_entropy,
    multitask_cross_entropy,
    weighted_linear_multitask_cross_entropy,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation:UserWarning"),
]
BACKENDS = [name for name in ("triton", "cuda") if name in pymtg.available_backends()]
LAYOUT = TaskLayout([f"task{t}" for t in range(60)], [1, 3, 2, 1, 20, 1] * 10)


@pytest.fixture(params=BACKENDS or [pytest.param("none", marks=pytest.mark.skip(reason="no GPU backend here"))])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    pymtg.check_errors()


def assert_same_map(got: DataMap, expected: DataMap) -> None:
    assert torch.equal(got.count.cpu(), expected.count.cpu())
    assert torch.equal(got.correctness.cpu(), expected.correctness.cpu())
    assert got.num_rejected == expected.num_rejected
    torch.testing.assert_close(got.mean.cpu(), expected.mean.cpu(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.std.cpu(), expected.std.cpu(), rtol=1e-4, atol=1e-6)


def batch(rows: int, samples: int, layout: TaskLayout = LAYOUT) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor(layout.num_classes).clamp(min=2)
    targets = (torch.rand(rows, layout.num_tasks) * labels).long()
    return 3 * torch.randn(rows, layout.num_logits), targets, torch.randint(samples, (rows,))


@pytest.mark.parametrize("name", CLASSES)
def test_layouts(name: str, backend: str, generator: torch.Generator, poisoned: None) -> None:
    for number, rows in enumerate(ROWS):
        layout = random_layout(CLASSES[name], generator, weighted=number % 2 == 1)
        drawn = [int(n) for n in torch.randint(2**20, (5,), generator=generator)]
        case = random_case(
            layout,
            rows,
            generator,
            dtype=LOGIT_DTYPES[drawn[0] % len(LOGIT_DTYPES)],
            target_dtype=TARGET_DTYPES[drawn[1] % len(TARGET_DTYPES)],
            missing=MISSING[drawn[2] % len(MISSING)],
            logit_strides=STRIDES[drawn[3] % len(STRIDES)],
            target_strides=STRIDES[drawn[4] % len(STRIDES)],
        )
        check(case, backend, "cuda")


@pytest.mark.parametrize("dtype", LOGIT_DTYPES, ids=str)
@pytest.mark.parametrize("missing", MISSING)
def test_dtypes(dtype: torch.dtype, missing: str, backend: str, generator: torch.Generator, poisoned: None) -> None:
    for target_dtype in TARGET_DTYPES:
        layout = random_layout([*[1] * 27, 3, 5, 2, 300, *[2] * 29], generator, weighted=True)
        case = random_case(layout, 33, generator, dtype=dtype, target_dtype=target_dtype, missing=missing)
        check(case, backend, "cuda")


@pytest.mark.parametrize("rows", [1, 200, 10_000, 140_000], ids=["one", "few", "many", "sorted ids"])
@pytest.mark.parametrize("missing", [False, True])
def test_maps(rows: int, missing: bool, backend: str) -> None:
    """Several batches with many duplicates and some rows that are refused, against the CPU."""
    there, here = DataMap(300, LAYOUT, missing=missing, device="cuda"), DataMap(300, LAYOUT, missing=missing)
    for _ in range(4 if rows < 100_000 else 1):
        logits, targets, ids = batch(rows, 300)
        logits[0, 5] = torch.inf if rows > 1 else 0.0
        if missing:
            targets[torch.rand(targets.shape) < 0.3] = -100
        multitask_cross_entropy(
            logits.cuda(), targets.cuda(), LAYOUT, data_map=there, sample_ids=ids.cuda(), backend=backend
        )
        multitask_cross_entropy(logits, targets, LAYOUT, data_map=here, sample_ids=ids)
    assert_same_map(there, here)


def test_twenty_runs_are_equal(backend: str) -> None:
    logits, targets, ids = (tensor.cuda() for tensor in batch(4000, 100))
    first: list[Tensor] = []
    for _ in range(20):
        data_map = DataMap(100, LAYOUT, device="cuda")
        x = logits.clone().requires_grad_()
        total = MultiTaskLoss(LAYOUT, data_map, backend=backend)(x, targets, ids)
        total.backward()
        results = [total.detach(), x.grad, *data_map.state]
        first = first or [one.clone() for one in results]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results, first, strict=True))


def step(loss: MultiTaskLoss, x: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    total = loss(x, targets, ids)
    total.backward()
    return total.detach()


@pytest.mark.parametrize("rows", [64, 10_000, 140_000], ids=["linked ids", "sorted by Triton", "sorted by both"])
def test_no_host_read_in_a_step(rows: int, backend: str) -> None:
    logits, targets, ids = (tensor.cuda() for tensor in batch(rows, 100))
    loss = MultiTaskLoss(LAYOUT, DataMap(100, LAYOUT, device="cuda"), [1.0] * 60, backend=backend).cuda()
    step(loss, logits.requires_grad_(), targets, ids)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, logits, targets, ids)
        loss.data_map.update(torch.rand(rows, 60, device="cuda"), ids, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(loss.data_map.count[:, 0].sum()) == 3 * rows


def test_three_launches(backend: str) -> None:
    """For losses, gradient and map together, however many tasks."""
    logits, targets, ids = (tensor.cuda() for tensor in batch(256, 1000))
    data_map = DataMap(1000, LAYOUT, device="cuda")
    x = logits.requires_grad_()
    upstream = torch.ones(60, device="cuda")

    def one_step() -> None:
        losses = multitask_cross_entropy(x, targets, LAYOUT, data_map=data_map, sample_ids=ids, backend=backend)
        torch.autograd.grad(losses, x, upstream)

    one_step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        one_step()
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    launched = [name for name in on_device if "Synchron" not in name and "Event" not in name]
    assert 0 < len(launched) <= 3, launched


def test_graph_capture(backend: str) -> None:
    logits, targets, ids = (tensor.cuda() for tensor in batch(64, 100))
    data_map = DataMap(100, LAYOUT, device="cuda")
    loss = MultiTaskLoss(LAYOUT, data_map, backend=backend)
    x = logits.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, allocates
        step(loss, x, targets, ids)
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    data_map.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = step(loss, x, targets, ids)
    assert data_map.count.sum() == 0, "a capture runs nothing"
    expected, plain = DataMap(100, LAYOUT, device="cuda"), logits.clone().requires_grad_()
    for number in range(3):
        with torch.no_grad():
            x.copy_(logits + number)
            plain.copy_(logits + number)
        ids.copy_((ids + 7) % 100)
        graph.replay()
        plain.grad = None
        wanted = step(MultiTaskLoss(LAYOUT, expected, backend=backend), plain, targets, ids)
        torch.testing.assert_close(total, wanted, rtol=0, atol=0)
        torch.testing.assert_close(x.grad, plain.grad, rtol=0, atol=0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(data_map.state, expected.state, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_step_with_amp(mode: str, backend: str) -> None:
    torch.compiler.reset()
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        data_map = DataMap(100, LAYOUT, device="cuda")
        models.append(nn.ModuleList([nn.Linear(16, LAYOUT.num_logits), MultiTaskLoss(LAYOUT, data_map)]).cuda())
        models[-1][1].backend = backend

    def forward(model: nn.ModuleList, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model[0](x)
        return model[1](logits, y, ids)

    compiled = torch.compile(forward, fullgraph=True, mode=mode)
    for _ in range(4):
        _, targets, ids = (tensor.cuda() for tensor in batch(64, 100))
        x = torch.randn(64, 16, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        expected, got = forward(models[0], x, targets, ids), compiled(models[1], x, targets, ids)
        torch.testing.assert_close(got.clone(), expected, rtol=1e-3, atol=1e-3)
        expected.backward()
        got.backward()
        torch.testing.assert_close(models[1][0].weight.grad, models[0][0].weight.grad, rtol=1e-2, atol=1e-2)
        for model in models:
            model.zero_grad()  # what torch keeps of a graph's gradients is overwritten in its next step
    assert torch.equal(models[1][1].data_map.count, models[0][1].data_map.count)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_as_a_graph_with_a_new_layout(backend: str) -> None:
    """What is kept of a layout must not lie in the memory of the graph in whose step it is first met."""
    torch.compiler.reset()
    layout = TaskLayout(["a", "b", "c"], [1, 3, 40])
    compiled = torch.compile(MultiTaskLoss(layout, backend=backend), fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        logits, targets = (tensor.cuda() for tensor in batch(64, 1, layout)[:2])
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        total = compiled(ours, targets)
        total.backward()
        expected = MultiTaskLoss(layout, backend="reference")(theirs, targets)
        expected.backward()
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_streams(backend: str) -> None:
    """Maps of their own on streams of their own, at the same time."""
    inputs = [tuple(tensor.cuda() for tensor in batch(500, 50)) for _ in range(4)]
    maps = [DataMap(50, LAYOUT, device="cuda") for _ in range(4)]
    alone = [DataMap(50, LAYOUT, device="cuda") for _ in range(4)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for _ in range(10):
        for stream, data_map, (logits, targets, ids) in zip(streams, maps, inputs, strict=True):
            with torch.cuda.stream(stream):
                MultiTaskLoss(LAYOUT, data_map, backend=backend)(logits, targets, ids)
    torch.cuda.synchronize()
    for _ in range(10):
        for data_map, (logits, targets, ids) in zip(alone, inputs, strict=True):
            MultiTaskLoss(LAYOUT, data_map, backend=backend)(logits, targets, ids)
    for one, other in zip(maps, alone, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(one.state, other.state, strict=True))


def test_layouts_dropped_while_they_are_read(backend: str) -> None:
    """On a stream of its own, behind other work, or in a graph: what was kept of a layout must not be overwritten."""
    logits, targets = (tensor.cuda() for tensor in batch(64, 1)[:2])
    expected = multitask_cross_entropy(logits, targets, LAYOUT, backend=backend)

    def losses_of_a_new_layout() -> Tensor:
        return multitask_cross_entropy(logits, targets, TaskLayout(LAYOUT.names, LAYOUT.num_classes), backend=backend)

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        found = losses_of_a_new_layout()
    gc.collect()
    rubbish = [torch.full((n,), -1, device="cuda") for n in range(1, 400)]
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
    layout = TaskLayout(LAYOUT.names, LAYOUT.num_classes)
    multitask_cross_entropy(logits, targets, layout, backend=backend)
    with torch.cuda.graph(graph):
        found = multitask_cross_entropy(logits, targets, layout, backend=backend)
    del layout
    gc.collect()
    rubbish += [torch.full((n,), -1, device="cuda") for n in range(1, 400)]
    graph.replay()
    assert torch.equal(found, expected)


def test_heads_under_an_assignment(backend: str) -> None:
    logits, targets = torch.randn(3, 200, LAYOUT.num_logits), batch(200, 1)[1]
    shares = torch.rand(60, 3)
    results = []
    for device, name in (("cuda", backend), ("cpu", "reference")):
        x, z = (one.detach().to(device).requires_grad_() for one in (logits, shares))
        total, losses = assigned_cross_entropy(x, targets.to(device), z, LAYOUT, backend=name)
        (2 * total).backward()
        results.append([one.detach().cpu() for one in (total, losses, x.grad, z.grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_faults(backend: str) -> None:
    logits, targets, ids = (tensor.cuda() for tensor in batch(64, 100))
    data_map = DataMap(100, LAYOUT, device="cuda")
    options = {"data_map": data_map, "sample_ids": ids, "backend": backend}
    targets[9, 1] = 3
    losses = multitask_cross_entropy(logits, targets, LAYOUT, **options)
    assert losses.isnan().nonzero()[:, 0].tolist() == [1]
    with pytest.raises(InvalidArgumentError, match="row 9, column 1 holds 3"):
        data_map.snapshot(1)
    targets[9, 1] = 0
    ids[11] = 100
    before = copy.deepcopy(data_map)
    with pymtg.debug(), pytest.raises(SampleIdError, match="row 11 holds 100"):
        multitask_cross_entropy(logits, targets, LAYOUT, **options)
    assert int(data_map.num_rejected) == before.num_rejected


def test_addresses_beyond_32_bits(backend: str) -> None:
    """More than 2^31 logits, and a map of more than 2^31 words."""
    rows, layout = 2**21 + 8, TaskLayout([f"task{t}" for t in range(64)], [16] * 64)
    if torch.cuda.mem_get_info()[0] < 32e9:
        pytest.skip("needs 32 GB of device memory")
    logits = torch.zeros((rows, 1024), dtype=torch.bfloat16, device="cuda")
    logits[-8:] = torch.randn(8, 1024, device="cuda")
    targets = torch.zeros((rows, 64), dtype=torch.uint8, device="cuda")
    samples = 2**24 + 5
    data_map = DataMap(samples, layout, device="cuda")
    ids = samples - 1 - torch.arange(rows, device="cuda")
    x = logits.requires_grad_()
    losses = multitask_cross_entropy(x, targets, layout, data_map=data_map, sample_ids=ids, backend=backend)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    p = logits.detach()[-8:].float().view(8, 64, 16).softmax(2)
    torch.testing.assert_close(data_map._now().words[ids[-8:], 0].shape, torch.Size([8, 64]))
    recorded = DataMap(8, layout, device="cuda")
    recorded.state.words.copy_(data_map.state.words[ids[-8:]])
    torch.testing.assert_close(recorded.mean, p[:, :, 0], rtol=1e-4, atol=1e-6)
    expected = (p - torch.nn.functional.one_hot(torch.zeros(8, 64, dtype=torch.long, device="cuda"), 16)) / rows
    torch.testing.assert_close(gradient[-8:].float().view(8, 64, 16), expected, rtol=1e-2, atol=1e-10)


def test_linear_head(backend: str) -> None:
    _, targets, ids = (tensor.cuda() for tensor in batch(100, 50))
    results, maps = [], [DataMap(50, LAYOUT, device="cuda") for _ in range(2)]
    torch.manual_seed(0)
    features, weight = torch.randn(100, 32, device="cuda"), torch.randn(LAYOUT.num_logits, 32, device="cuda") / 8
    for data_map, chunked in zip(maps, (True, False), strict=True):
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        options = {"data_map": data_map, "sample_ids": ids, "backend": backend}
        if chunked:
            losses = linear_multitask_cross_entropy(x, w, None, targets, LAYOUT, max_columns=40, **options)
        else:
            losses = multitask_cross_entropy(x @ w.T, targets, LAYOUT, **options)
        results.append([losses.detach(), *torch.autograd.grad(losses.square().sum(), (x, w))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert torch.equal(maps[0].count, maps[1].count)
    torch.testing.assert_close(maps[0].mean, maps[1].mean, rtol=1e-4, atol=1e-5)


class LinearHead(nn.Module):
    """A linear head, its loss in chunks of 40 columns, a map; the total of one form or of the other."""

    def __init__(self, backend: str, *, weighted: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(LAYOUT.num_logits, 32, generator=generator).cuda() / 8)
        self.bias = nn.Parameter(torch.randn(LAYOUT.num_logits, generator=generator).cuda())
        self.map, self.backend, self.weighted = DataMap(100, LAYOUT, device="cuda"), backend, weighted

    def forward(self, x: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        options = {"data_map": self.map, "sample_ids": ids, "max_columns": 40, "backend": self.backend}
        head = (x, self.weight, self.bias, targets, LAYOUT)
        if self.weighted:
            return 2 * weighted_linear_multitask_cross_entropy(*head, **options)[0]
        return linear_multitask_cross_entropy(*head, **options).square().sum()

    def step(self, *batch: Tensor) -> Tensor:
        total = self(*batch)
        total.backward()
        return total.detach()


def linear_batch(rows: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    _, targets, ids = (tensor.cuda() for tensor in batch(rows, 100))
    return torch.randn(rows, 32, device="cuda"), targets, ids


@pytest.mark.parametrize("weighted", [False, True])
def test_no_host_read_in_a_step_of_a_linear_head(weighted: bool, backend: str) -> None:
    head, arguments = LinearHead(backend, weighted=weighted), linear_batch()
    head.step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        head.step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(head.map.count[:, 0].sum()) == 2 * 64


@pytest.mark.parametrize("weighted", [False, True])
def test_graph_capture_of_a_linear_head(weighted: bool, backend: str) -> None:
    head, plain = (LinearHead(backend, weighted=weighted) for _ in range(2))
    x, targets, ids = linear_batch()
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, allocates, cuts the chunks' layouts
        head.step(x, targets, ids)
    torch.cuda.current_stream().wait_stream(side)
    x.grad = head.weight.grad = head.bias.grad = None
    head.map.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = head.step(x, targets, ids)
    assert head.map.count.sum() == 0, "a capture runs nothing"
    for _ in range(3):
        new = linear_batch()
        with torch.no_grad():
            for static, values in zip((x, targets, ids), new, strict=True):
                static.copy_(values)
        graph.replay()
        inputs = new[0].requires_grad_()
        plain.zero_grad()
        wanted = plain.step(inputs, *new[1:])
        torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad, inputs.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-5)
    assert_same_map(head.map, plain.map)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_linear_head_with_amp(mode: str, weighted: bool, backend: str) -> None:
    torch.compiler.reset()
    heads = [LinearHead(backend, weighted=weighted) for _ in range(2)]

    def forward(head: LinearHead, *arguments: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return head(*arguments)

    compiled = torch.compile(forward, fullgraph=True, mode=mode)
    for _ in range(4):
        arguments = linear_batch()
        torch.compiler.cudagraph_mark_step_begin()
        expected, got = forward(heads[0], *arguments), compiled(heads[1], *arguments)
        torch.testing.assert_close(got.clone(), expected, rtol=1e-3, atol=1e-3)
        expected.backward()
        got.backward()
        for ours, theirs in zip(heads[1].parameters(), heads[0].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-2)
        for head in heads:
            head.zero_grad()  # what torch keeps of a graph's gradients is overwritten in its next step
    assert torch.equal(heads[1].map.count, heads[0].map.count)
    torch.compiler.reset()


def test_map_in_host_memory(backend: str) -> None:
    """The same samples step after step: each finds what the last one wrote. Ids on either device."""
    away, here = DataMap(20, LAYOUT, device="cuda", storage="cpu"), DataMap(20, LAYOUT, device="cuda")
    for number in range(10):
        logits, targets, ids = (tensor.cuda() for tensor in batch(64, 20))
        for data_map in (away, here):
            given = ids.cpu() if number % 2 and data_map is away else ids.clone()
            multitask_cross_entropy(logits, targets, LAYOUT, data_map=data_map, sample_ids=given, backend=backend)
            again = ids.clone()
            data_map.update(torch.full((64, 60), 0.5, device="cuda"), again, backend="reference")
            given.zero_(), again.zero_()  # they are the caller's again
    assert away.mean.device.type == "cpu"
    assert_same_map(away, here)


def test_snapshots_and_gram(backend: str) -> None:
    maps = {kind: DataMap(40, LAYOUT, device="cuda", snapshots=kind) for kind in ("memory", "host", "gram", "disk")}
    on_cpu = DataMap(40, LAYOUT)
    for epoch in range(3):
        p, ids = torch.rand(64, 60), torch.randint(40, (64,))
        on_cpu.update(p, ids)
        on_cpu.snapshot(epoch)
        for data_map in maps.values():
            data_map.update(p.cuda(), ids.cuda(), backend=backend)
            data_map.snapshot(epoch)
    maps["host"].update(p.cuda(), ids.cuda(), backend=backend)
    assert maps["host"].snapshots[-1].words.is_pinned()
    assert torch.equal(maps["host"].snapshots[-1].words, maps["memory"].snapshots[-1].words.cpu())
    for data_map in maps.values():
        torch.testing.assert_close(data_map.gram(), on_cpu.gram(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps["gram"].gram(), maps["memory"].gram(), rtol=1e-12, atol=1e-12)
