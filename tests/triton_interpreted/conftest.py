"""Triton's kernels, run by its interpreter: on the CPU, a program after the other, in NumPy."""

from __future__ import annotations

import pytest
from _interpreted import patch_once

import pymtg


@pytest.fixture(scope="session", autouse=True)
def _interpreter_patches_once():
    restore = patch_once()
    yield
    restore()


@pytest.fixture(autouse=True)
def _no_fault_left():
    yield
    pymtg.check_errors()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # a kernel computes with infinities, as NumPy reports
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"))
