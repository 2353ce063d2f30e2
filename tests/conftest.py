from __future__ import annotations

import gc

import pytest
import torch
from _settings import BACKENDS, TRITON_INTERPRETED, new_seed

# Triton reads the variable when it is imported: these run in a process of their own (test_triton.py).
collect_ignore = [] if TRITON_INTERPRETED else ["triton_interpreted"]


# Where these are left to the end, one process waits for the other.
LONGEST = (
    "test_host_device.py",
    "test_ranks.py",
    "test_triton.py",
    "test_linear_compile.py",
    "test_cli_process.py",
    "test_linear_cross_entropy.py",
    "test_assigned_cross_entropy.py",
    "test_cli.py",
    "test_resume_compare.py",
    "test_cross_entropy.py",
    "test_cli_dmtg.py",
    "test_cuda_emulated.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if torch.cuda.is_available():  # there torch imports all of its compiler, a deprecated decorator of its own among it
        config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Leave what the test files have imported out of garbage collections, which libraries ask for at every training."""
    gc.freeze()


@pytest.fixture
def seed() -> int:
    """A seed that is fresh in every run; pytest shows it where a test fails."""
    found = new_seed()
    print(f"PYMTG_TEST_SEED={found}")
    return found


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are fresh in every run; pytest shows the seed where a test fails."""
    seed = new_seed()
    print(f"PYMTG_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN or the largest integer: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors are slower on many threads, and far slower on a busy machine; tests that need threads ask."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
