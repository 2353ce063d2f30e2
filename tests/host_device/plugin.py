"""A plugin of pytest's, ``-p host_device.plugin``: this process has a CUDA device, in the host's memory.

``PYMTG_HOST_DEVICE`` names the folder that keeps what is built; the plugin comes before anything imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import host_device

_cache = Path(os.environ["PYMTG_HOST_DEVICE"])
host_device.load(host_device.build(_cache))

import torch  # noqa: E402

from host_device import kernels  # noqa: E402

kernels.install(_cache / "emulated")

_compile = torch.compile


def _traced(model: Any = None, **options: Any) -> Any:
    """torch.compile without its code generator, which would write kernels for a GPU."""
    for name in ("mode", "backend"):
        options.pop(name, None)
    return _compile(model, backend="aot_eager", **options)


torch.compile = _traced  # type: ignore[assignment]
