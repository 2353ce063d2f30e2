"""On the device: note a bad value in the device's fault buffer (see ``pymtg/_faults.py`` for its layout)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def note(faults, code, row, task, value, layout, num_samples):
    """Write a fault down unless there is one already."""
    nothing = tl.zeros((), tl.int64)
    if tl.atomic_cas(faults, nothing, nothing + code) == 0:
        tl.store(faults + 1, nothing + row)
        tl.store(faults + 2, nothing + task)
        tl.store(faults + 3, nothing + value)
        tl.store(faults + 4, nothing + layout)
        tl.store(faults + 5, nothing + num_samples)
