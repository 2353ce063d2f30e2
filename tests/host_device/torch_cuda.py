"""The Python side of the device in the host's memory: what ``torch.cuda`` and its like answer."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.profiler
from torch import Tensor

DEVICE = torch.device("cuda", 0)
OPS = torch.ops.host_device


class Stream:
    """A stream, on which everything is done as soon as it is asked for."""

    cuda_stream = 0
    _numbers = itertools.count(1)

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device, self.stream_id = DEVICE, next(self._numbers)

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Event:
    """An event that has happened."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class StreamContext:
    """``with torch.cuda.stream(...)``."""

    current: ClassVar[list[Stream]] = [Stream()]

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream or self.current[-1]

    def __enter__(self) -> None:
        self.current.append(self.stream)

    def __exit__(self, *error: object) -> None:
        self.current.pop()


class CUDAGraph:
    """Operators in the order they came, and between them kernels that are none."""

    capturing: CUDAGraph | None = None

    def __init__(self, keep_graph: bool = False) -> None:
        self.number = -1
        self.kernels: list[tuple[int, Callable[[], object]]] = []

    def replay(self) -> None:
        done = 0
        for place, kernel in self.kernels:
            OPS.replay(self.number, done, place)
            kernel()
            done = place
        OPS.replay(self.number, done, -1)


@contextlib.contextmanager
def graph(captured: CUDAGraph, **options: Any) -> Iterator[None]:
    CUDAGraph.capturing = captured
    OPS.capture_begin()
    try:
        yield
    finally:
        captured.number = OPS.capture_end()
        CUDAGraph.capturing = None


def launch(name: str, kernel: Callable[[], Any]) -> Any:
    """Run a kernel that is no operator of torch's, and keep it where a graph is captured."""
    result = kernel()
    OPS.launched(name)
    if CUDAGraph.capturing is not None:
        CUDAGraph.capturing.kernels.append((OPS.recorded(), kernel))
    return result


class DeviceContext:
    """``with torch.cuda.device(0)``."""

    def __init__(self, device: Any = None) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class Profile(torch.profiler.profile):
    """The profiler of the CPU, with an event for every launch, which an operator is at least one of."""

    def __init__(self, *, activities: Any = None, **options: Any) -> None:
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)

    def start(self) -> None:
        super().start()
        OPS.listen(True)

    def stop(self) -> None:
        OPS.listen(False)
        super().stop()

    def events(self) -> list[Any]:
        kind = torch.autograd.DeviceType.CUDA
        return [*super().events(), *(types.SimpleNamespace(name=name, device_type=kind) for name in OPS.launches())]


def install() -> None:
    """Put all of it in the place of what torch has."""
    cuda: Any = torch.cuda
    properties = types.SimpleNamespace(
        name="a device in the host's memory", total_memory=16 << 30, multi_processor_count=1, major=9, minor=0
    )
    answers = {
        "current_device": 0,
        "device_count": 1,
        "get_device_capability": (9, 0),
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "is_available": True,
        "is_bf16_supported": True,
        "is_initialized": True,
        "max_memory_allocated": 0,
        "mem_get_info": (8 << 30, 16 << 30),
        "memory_allocated": 0,
        "_is_in_bad_fork": False,
        **dict.fromkeys(
            ("_lazy_init", "_sleep", "empty_cache", "reset_peak_memory_stats", "set_device", "synchronize")
        ),
    }
    for name, answer in answers.items():
        setattr(cuda, name, _answering(answer))
    cuda._initialized = True
    cuda.Stream, cuda.Event, cuda.StreamContext, cuda.stream = Stream, Event, StreamContext, StreamContext
    cuda.CUDAGraph, cuda.graph, cuda.device, cuda.device_of = CUDAGraph, graph, DeviceContext, DeviceContext
    cuda.current_stream = lambda device=None: StreamContext.current[-1]
    cuda.default_stream = lambda device=None: StreamContext.current[0]
    cuda.is_current_stream_capturing = OPS.capturing
    cuda.set_sync_debug_mode, cuda.get_sync_debug_mode = _set_sync_debug_mode, lambda: 2 if OPS.waits_forbidden() else 0
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *words: 0
    cuda.manual_seed = cuda.manual_seed_all = lambda seed: OPS.manual_seed(int(seed) % 2**63)
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: OPS.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: OPS.set_rng_state(state)
    cuda.get_rng_state_all = lambda: [OPS.get_rng_state()]
    cuda.set_rng_state_all = lambda states: OPS.set_rng_state(states[0])
    _install_below()


def _install_below() -> None:
    """What is asked for beside ``torch.cuda``."""
    for name, answer in {
        "_cuda_exchangeDevice": 0,
        "_cuda_getCurrentRawStream": 0,
        "_cuda_getDevice": 0,
        "_cuda_getDeviceCount": 1,
        "_cuda_maybeExchangeDevice": 0,
        "_cuda_setDevice": None,
    }.items():
        setattr(torch._C, name, _answering(answer))
    torch.version.cuda = "13.0"
    torch.profiler.profile = Profile  # type: ignore[misc]
    torch.profiler.supported_activities = lambda: {torch.profiler.ProfilerActivity.CPU}
    torch.Tensor.record_stream = _record_stream  # type: ignore[assignment]
    torch.UntypedStorage.clone = _cloned  # type: ignore[method-assign]
    torch.UntypedStorage.cpu = _on_cpu  # type: ignore[method-assign]
    torch.serialization.register_package(1, lambda storage: "cuda:0" if storage.is_cuda else None, _restored)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: answer


def _set_sync_debug_mode(mode: int | str) -> None:
    OPS.forbid_waits(mode in ("error", 2))


def _record_stream(self: Tensor, stream: Stream) -> None:
    assert isinstance(stream, Stream)
    assert self.is_cuda


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _cloned(self: torch.UntypedStorage) -> torch.UntypedStorage:
    return _bytes_of(self).clone().untyped_storage()


def _on_cpu(self: torch.UntypedStorage) -> torch.UntypedStorage:
    return _bytes_of(self).cpu().untyped_storage() if self.is_cuda else self


def _restored(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    return _bytes_of(storage).cuda().untyped_storage() if location.startswith("cuda") else None
