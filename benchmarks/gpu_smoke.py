"""What is there, and one small step of every backend against plain torch: the first thing to know on a device.

Exits with 2 where there is no device, with 1 where a backend fails or is off.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import traceback

import torch


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def step(backend: str, device: str) -> list[torch.Tensor]:
    """Return losses, gradient and the map's tensors of a step on fixed numbers."""
    from pymtg import DataMap, TaskLayout
    from pymtg.functional import multitask_cross_entropy

    generator = torch.Generator().manual_seed(0)
    layout = TaskLayout([f"t{t}" for t in range(50)], [1, 3, 2, 1, 20] * 10)
    logits = torch.randn(64, layout.num_logits, generator=generator).to(device).requires_grad_()
    labels = torch.tensor(layout.num_classes).clamp(min=2)
    targets = (torch.rand(64, 50, generator=generator) * labels).long().to(device)
    ids = torch.randint(40, (64,), generator=generator).to(device)
    data_map = DataMap(40, layout, device=device)
    losses = multitask_cross_entropy(logits, targets, layout, data_map=data_map, sample_ids=ids, backend=backend)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return [one.detach().cpu() for one in (losses, gradient, data_map.mean, data_map.std, data_map.correctness)]


def main() -> int:
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, triton {version('triton')}")
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 2
    print(torch.cuda.get_device_properties(0))
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], check=False)
    import pymtg

    print(f"{pymtg.__path__[0]}: {', '.join(pymtg.available_backends())}")
    expected = step("cpp", "cpu")
    status = 0
    for backend in ("cuda", "triton", "reference"):
        try:
            found = step(backend, "cuda")
            torch.cuda.synchronize()
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            print(f"{backend}: as on the CPU")
        except Exception:
            traceback.print_exc()
            print(f"{backend}: FAILED")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
