"""One place for what the tests of the core run on: backends, dtypes, device, fresh seeds."""

from __future__ import annotations

import os
import secrets

import torch

DEVICE = torch.device("cpu")
BACKENDS = ("cpp", "reference")
LOGIT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.int16, torch.int8)
ISAS = ("base", "avx2", "avx512")
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def new_seed() -> int:
    """Return ``PYMTG_TEST_SEED`` if set (to repeat a failure), else a fresh seed."""
    return int(os.environ.get("PYMTG_TEST_SEED") or secrets.randbits(31))
