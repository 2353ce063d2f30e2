"""What a run is, in JSON: by it a checkpoint of another run is told from one of this."""

from __future__ import annotations

import dataclasses
import numbers
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pymtg.trainers.config import TrainConfig

__all__ = ["described", "described_config", "differences"]

# These change no result, or none that is told from rounding.
_FREE = ("on_epoch_end", "num_threads")


def described(value: Any) -> Any:
    """Return a value as JSON has it; functions by their names, modules by their kind and weights."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, numbers.Real):  # NumPy's
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, _checksum(value.state_dict().values())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', None) or type(value).__module__}.{name}"


def described_config(config: TrainConfig) -> dict[str, Any]:
    """Return the options of a training that a continued one must share."""
    fields = [field.name for field in dataclasses.fields(config) if field.name not in _FREE]
    found = {name: described(getattr(config, name)) for name in fields}
    return {**found, "device": config.torch_device.type, "amp": str(config.amp_dtype)}


def differences(there: Any, here: Any) -> list[str]:
    """Return in words what differs between the description in a checkpoint and that of the run at hand."""
    return list(_differences(there, here, ""))


def _differences(there: Any, here: Any, path: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{path} {key}".strip())
    elif there != here:
        yield f"{path} ({_short(there)} there, {_short(here)} here)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checksum(values: Any) -> int:
    found = 0
    for value in values:
        if isinstance(value, torch.Tensor) and value.numel():
            plain = value.detach().cpu().contiguous().reshape(-1)
            found = zlib.crc32(plain.view(torch.uint8).numpy().data, found)
    return found
