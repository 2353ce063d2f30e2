"""Seeds of the stages, and a block that leaves every global random state as it found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["cpu_threads", "random_states", "reseed", "seeded", "set_random_states", "stage_seed"]

_STAGES = ("joint", "task", "group", "random", "cluster", "split", "dmtg", "assignment", "finetune", "rank")


def stage_seed(seed: int, stage: str, index: int = 0) -> int:
    """Return the seed of one stage: independent of the others, the same whichever stages ran before it."""
    words = np.random.SeedSequence([seed, _STAGES.index(stage), index]).generate_state(2)
    return (int(words[0]) << 31) ^ int(words[1])  # below 2^63, which every torch generator takes


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (CPU and `device`), NumPy and `random` inside the block; give the caller's states back after it.

    Initial weights, dropout and the augmentations of a dataset draw from the global generators, so they are what has
    to be seeded; the caller's own draws go on as if nothing had happened.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    cudnn_flags = cudnn.deterministic, cudnn.benchmark
    index = [] if device.type == "cpu" else [_device_index(device)]
    with torch.random.fork_rng(index, device_type="cuda" if device.type == "cpu" else device.type):
        try:
            reseed(seed, device)
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = cudnn_flags
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def reseed(seed: int, device: torch.device) -> None:
    """Seed torch (CPU and `device`), NumPy and `random`."""
    # not torch.manual_seed: it would also seed accelerators that are none of our business
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        with module.device(_device_index(device)):
            module.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that :func:`seeded` seeds, as arrays and tensors."""
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    version, python_words, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.default_generator.get_state(),
        "numpy": [name, np.asarray(words).astype(np.int64), *rest],
        "python": [version, np.array(python_words, dtype=np.int64), gauss],
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set what :func:`random_states` returned."""
    torch.default_generator.set_state(states["torch"])
    name, words, *rest = states["numpy"]
    np.random.set_state((name, words.astype(np.uint32), *rest))  # noqa: NPY002
    version, python_words, gauss = states["python"]
    random.setstate((version, tuple(python_words.tolist()), gauss))
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


def _device_index(device: torch.device) -> int:
    return device.index if device.index is not None else torch.get_device_module(device).current_device()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
