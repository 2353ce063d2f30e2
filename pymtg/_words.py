"""How a data map packs the mean, standard deviation and correctness of one (sample, task) into two 32-bit words.

Word 0 holds 26 bits of the mean and, above them, the 6 low bits of the number of right predictions; word 1 holds 26
bits of the standard deviation (ddof 0) and the 6 high bits of that number. A value v in [0, 1] is kept as the low 26
bits of the float32 ``v + 2^-7``, whose upper bits are known: large values keep the spacing of float32, small ones an
absolute spacing below 1e-9. Zero words mean (0, 0, 0). ``csrc/datamap_words.hpp`` is the same in C++.
"""

from __future__ import annotations

import torch
from torch import Tensor

VALUE_BITS = 26
VALUE_MASK = (1 << VALUE_BITS) - 1
MOST_COUNTED = 4095
"""Right predictions are counted over the first 4,095 observations of a sample."""
MOST_COMPLETE_COUNTED = 2**31 - 1
MOST_MISSING_COUNTED = 32767
"""Where labels may be missing, counts of observations stop here and Welford's weights stay at 1 / 32,767."""

_SHIFT, _SHIFT_BITS = 2.0**-7, (127 - 7) << 23


def unpack_values(words: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (ddof 0), float32 ``[..., T]``, of packed words, int32 ``[..., 2, T]``."""
    bits = words & VALUE_MASK
    bits |= _SHIFT_BITS
    values = bits.view(torch.float32).sub_(_SHIFT)
    return values[..., 0, :], values[..., 1, :]


def unpack_right(words: Tensor) -> Tensor:
    """Return the numbers of right predictions, int32 ``[..., T]``, of packed words, int32 ``[..., 2, T]``."""
    low = words[..., 0, :] >> VALUE_BITS
    low &= 63
    high = words[..., 1, :] >> (VALUE_BITS - 6)
    high &= 63 << 6
    low |= high
    return low


def pack(mean: Tensor, std: Tensor, right: Tensor) -> Tensor:
    """Return the packed words, int32 ``[..., 2, T]``, of float32 means and deviations and int32 counts ``[..., T]``."""
    values = (torch.stack([mean, std], dim=-2) + _SHIFT).view(torch.int32) & VALUE_MASK
    return values | (torch.stack([right & 63, right >> 6], dim=-2) << VALUE_BITS)
