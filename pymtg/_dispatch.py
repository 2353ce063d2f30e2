"""Which backend serves which device where none is asked for: the one table.

On CUDA the order has **not been measured** yet: no figure for it lies in ``benchmarks/results``. Once one does, it
decides.
"""

from __future__ import annotations

PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}
"""Per device type, backends by name, the first that this installation has serves."""
ELSEWHERE = ("reference",)


def preferred(device_type: str) -> tuple[str, ...]:
    """Return the names of the backends for tensors of a device type, the preferred first."""
    return PREFERENCE.get(device_type, ELSEWHERE)
