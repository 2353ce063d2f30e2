"""Which streams and graphs read tensors that last, with a device that is pretended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pymtg import _lasting
from pymtg._lasting import Lasting


class Pretended:
    """A tensor that says on which streams it was recorded."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def record_stream(self, stream: SimpleNamespace) -> None:
        self.streams.append(stream.cuda_stream)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(stream=0, capturing=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=now.stream))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now.capturing)
    monkeypatch.setattr(_lasting, "_in_graphs", [])
    return now


def test_every_stream_is_noted_once(device: SimpleNamespace) -> None:
    first, second = Pretended(), Pretended()
    tensors = Lasting(torch.device("cuda", 0))
    tensors.keep(first, None)
    for device.stream in (0, 7, 7, 0):
        tensors.about_to_be_read()
    assert first.streams == [0, 7]
    tensors.keep(second)
    tensors.about_to_be_read()
    assert second.streams == [0]
    assert _lasting._in_graphs == []


def test_what_a_graph_reads_stays(device: SimpleNamespace) -> None:
    first, second = Pretended(), Pretended()
    tensors = Lasting(torch.device("cuda", 0))
    tensors.keep(first)
    device.capturing = True
    tensors.about_to_be_read()
    tensors.about_to_be_read()
    assert _lasting._in_graphs == [first]
    assert first.streams == []
    tensors.keep(second)
    tensors.about_to_be_read()
    assert second in _lasting._in_graphs


def test_nothing_to_note_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "current_stream")
    tensors = Lasting(torch.device("cpu"))
    tensors.keep(torch.zeros(1))
    tensors.about_to_be_read()  # asks for no stream
    assert not tensors._streams
