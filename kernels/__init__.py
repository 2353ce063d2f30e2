"""GPU kernels, installed as ``pymtg.kernels``. Nothing in here knows the rest of pymtg.

What a kernel has to compute and how a backend is plugged in is written in ``docs/architecture.md`` ("The backend
seam").
"""
