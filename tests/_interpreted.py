"""Triton's interpreter, with less to do."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def patch_once() -> Callable[[], None]:
    """Let it replace triton.language's functions once, not at every call: most of its time. Returns the way back."""
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def patched(function: Any) -> Any:
        if id(function.__globals__) not in done:
            done.add(id(function.__globals__))
            patch(function)
        return types.SimpleNamespace(restore=lambda: None)

    def restore() -> None:
        interpreter._patch_lang = patch

    interpreter._patch_lang = patched
    return restore
