"""Bad values that a kernel met on a device: noted there without a host synchronisation, raised when the host reads.

A device has one buffer, int64 ``[8]``, that all kernels and streams share; zeros mean that nothing was noted.

| entry | meaning |
| --- | --- |
| 0 | what: 1 target, 2 missing label, 3 sample id, 4 probability (:class:`Fault`) |
| 1 | row of the batch |
| 2 | task; 0 for a sample id |
| 3 | the value found; for a probability the bits of the float64 |
| 4 | ``TaskLayout.handle`` of the layout in use |
| 5 | samples of the data map, for a sample id |
| 6, 7 | unused |

A kernel writes a fault so: compare-and-swap entry 0 from 0 to the code; whoever saw the 0 writes entries 1 to 5. So the
first fault stays until it is raised, and one of several in a launch is noted. The rows of a fault are not
recorded, the faulty labels add nothing to the gradient, and the losses concerned are NaN.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from types import TracebackType

import torch
from torch import Tensor

from pymtg._lasting import lasting
from pymtg._reference import SOFT_LABEL, id_out_of_range, missing_label, soft_label, target_out_of_range
from pymtg.errors import InvalidArgumentError, PymtgError
from pymtg.tasks import TaskLayout

__all__ = ["Fault", "check", "check_errors", "debug", "debugging", "fault_buffer", "note"]

SIZE = 8


class Fault(IntEnum):
    """What entry 0 of the buffer says."""

    NONE = 0
    TARGET = 1
    MISSING = 2
    SAMPLE_ID = 3
    PROBABILITY = 4


_buffers: dict[torch.device, Tensor] = {}
_debugging = False


def fault_buffer(device: torch.device) -> Tensor:
    """Return the buffer of a device, made at the first call: not while a CUDA graph is captured."""
    buffer = _buffers.get(device)
    if buffer is None:
        buffer = _buffers[device] = lasting(lambda: torch.zeros(SIZE, dtype=torch.int64).to(device), device)
    return buffer


def note(fault: Fault, bad: Tensor, values: Tensor, layout: TaskLayout, num_samples: int = 0) -> None:
    """Note the first entry of `values` ``[B, T]`` or ``[B, 1]`` that is marked in `bad`, without a synchronisation."""
    buffer = fault_buffer(values.device)
    if bad.numel() == 0:
        return
    first = bad.flatten().to(torch.uint8).argmax()
    value = values.flatten().gather(0, first[None])
    if value.is_floating_point():
        value = value.double().view(torch.int64)
    new = torch.zeros_like(buffer)
    for entry, number in ((0, int(fault)), (4, layout.handle), (5, num_samples)):
        new[entry].fill_(number)  # new[entry] = number would wait for the device
    new[1], new[2], new[3:4] = first // bad.shape[1], first % bad.shape[1], value
    buffer.copy_(torch.where((buffer[0] == 0) & bad.any(), new, buffer))


def check(device: torch.device) -> None:
    """Raise what was noted on a device and forget it; reads the device, and nothing where no kernel can have noted."""
    buffer = _buffers.get(device)
    if buffer is None or torch.compiler.is_compiling():
        return
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return  # no host read is possible: the next one after the capture raises
    found = buffer.tolist()
    if found[0] != Fault.NONE:
        buffer.zero_()
        raise _error(found)


def check_errors() -> None:
    """Raise now what kernels found wrong with targets, sample ids or probabilities on a device.

    Kernels on a GPU do not stop the host for such an error: they leave the values alone, give NaN for the losses
    concerned, and note it. It is raised where the host reads a data map the next time, or here; waits for all devices.

    Raises
    ------
    InvalidArgumentError
        For a label that its task does not have, or a probability outside [0, 1].
    SampleIdError, MissingLabelError
        For a sample id that the data map does not have, or a missing label met by a map of complete ones.
    """
    for device in list(_buffers):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        check(device)


class debug:  # noqa: N801 - used as torch.no_grad and torch.autograd.detect_anomaly are
    """Raise errors of values on a GPU in the call that meets them, at the price of a synchronisation per call.

    A switch, and a context manager that puts back what was set before:

    >>> with pymtg.debug():
    ...     pymtg.check_errors()

    Parameters
    ----------
    enabled
        Whether to check after each call.
    """

    def __init__(self, enabled: bool = True) -> None:
        global _debugging
        self._before = _debugging
        _debugging = bool(enabled)

    def __enter__(self) -> debug:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _debugging
        _debugging = self._before


def debugging() -> bool:
    """Whether :class:`debug` is on."""
    return _debugging


def _error(found: list[int]) -> PymtgError:
    what, row, task, value, handle, samples = found[:6]
    if what == Fault.SAMPLE_ID:
        return id_out_of_range(row, value, samples)
    try:
        layout = TaskLayout.with_handle(handle)
    except KeyError:  # gone since
        return InvalidArgumentError(
            f"targets held a bad value in row {row}, column {task} of an earlier batch: {value}"
        )
    if what == Fault.TARGET and value == SOFT_LABEL:
        where = f"row {row}, column {layout.first_column + task} of an earlier batch"
        return soft_label(f"of task {layout.names[task]!r}", f"{where} was no whole number")
    if what == Fault.TARGET:
        return target_out_of_range(layout, row, task, value)
    if what == Fault.MISSING:
        return missing_label(layout, row, task)
    (number,) = struct.unpack("<d", struct.pack("<q", value))
    return InvalidArgumentError(
        f"probabilities must lie in [0, 1]; row {row}, task {layout.names[task]!r} held {number}"
    )
