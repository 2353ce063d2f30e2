"""The GPU's kernels on the device in the host's memory: those in CUDA emulated, Triton's in its interpreter."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _emulated import emulated_kernels
from _interpreted import patch_once

from host_device.torch_cuda import OPS, launch


def install(cache: Path) -> None:
    """Put them in the place of pymtg._cuda and, where Triton is to be interpreted, of its launches."""
    import pymtg  # noqa: F401 - the package that pymtg._cuda is part of

    cache.mkdir(parents=True, exist_ok=True)
    emulated = emulated_kernels(cache)
    module = types.ModuleType("pymtg._cuda")
    module.__dict__.update({name: value for name, value in vars(emulated).items() if not name.startswith("__")})
    for name in ("cross_entropy", "record", "scale_gradient"):
        setattr(module, name, _launched(name, getattr(emulated, name), emulated.launches))
    module.__spec__ = importlib.machinery.ModuleSpec("pymtg._cuda", None)
    sys.modules["pymtg._cuda"] = module
    if os.environ.get("TRITON_INTERPRET") == "1":
        _interpret_on_the_host()


def _launched(name: str, call: Any, launches: Callable[[], int]) -> Any:
    def launching(*arguments: Any) -> Any:
        before = launches()
        result = launch(name, lambda: call(*arguments))
        for _ in range(launches() - before - 1):
            OPS.launched(name)
        return result

    return launching


def _interpret_on_the_host() -> None:
    """Hand the interpreter tensors over the same memory: it would copy those of a device there and back."""
    import numpy as np
    from triton.runtime import interpreter

    patch_once()
    run = interpreter.InterpretedFunction.run

    def on_host(value: Any) -> Any:
        return OPS.on_host(value.detach()) if isinstance(value, torch.Tensor) and value.is_cuda else value

    def run_on_host(self: Any, *arguments: Any, **options: Any) -> Any:
        arguments = tuple(map(on_host, arguments))
        options = {name: on_host(value) for name, value in options.items()}

        def kernel() -> Any:
            with np.errstate(all="ignore"):  # a kernel computes with infinities
                return run(self, *arguments, **options)

        return launch(self.fn.__name__, kernel)

    interpreter.InterpretedFunction.run = run_on_host
