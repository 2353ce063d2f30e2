"""Triton's kernels, run by its interpreter: on the CPU, a program after the other, in NumPy."""

from __future__ import annotations

import types

import pytest

import pymtg


@pytest.fixture(scope="session", autouse=True)
def _interpreter_patches_once():
    """The interpreter replaces the functions of triton.language at every call, for good here: most of its time."""
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) not in done:
            done.add(id(function.__globals__))
            patch(function)
        return types.SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
    yield
    interpreter._patch_lang = patch


@pytest.fixture(autouse=True)
def _no_fault_left():
    yield
    pymtg.check_errors()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # a kernel computes with infinities, as NumPy reports
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"))
