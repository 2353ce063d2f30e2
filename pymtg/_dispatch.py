"""Which backend serves which device where none is asked for: the one table.

On CUDA plain torch serves, as long as the kernels have **not run on a device**: ``backend="triton"`` or ``"cuda"``, or
``PYMTG_BACKEND``, asks for them. Once ``tests/gpu`` has passed on one, the figures that ``benchmarks/run_gpu.sh``
leaves in ``benchmarks/results`` decide.
"""

from __future__ import annotations

PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("reference",),
}
"""Per device type, backends by name, the first that this installation has serves."""
ELSEWHERE = ("reference",)


def preferred(device_type: str) -> tuple[str, ...]:
    """Return the names of the backends for tensors of a device type, the preferred first."""
    return PREFERENCE.get(device_type, ELSEWHERE)
