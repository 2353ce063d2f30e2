from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned() -> Iterator[None]:
    """As in the other tests; what torch has no deterministic form of on a device may run all the same."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def pytest_runtest_logfinish() -> None:
    """End a process whose device has met an illegal access: all that it calls from there on fails too.

    Under pytest-xdist another process takes its place and goes on with the next test.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(3)
        pytest.exit(f"the device is lost to this process: {error}", returncode=3)
