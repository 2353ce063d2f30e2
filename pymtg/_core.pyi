"""Types of the compiled extension. Arguments are addresses and sizes; only the wrappers named here call it."""

from collections.abc import Sequence

def isa() -> str: ...
def has_openmp() -> bool: ...

# --- fused cross-entropy and data maps: called by pymtg/_cpp.py ---

class LayoutPlan:
    def __init__(
        self, num_classes: Sequence[int], pos_weight: Sequence[float], class_weight: Sequence[float]
    ) -> None: ...

def cross_entropy_forward_float(
    layout: LayoutPlan,
    logits: int,
    rows: int,
    row_stride: int,
    targets: int,
    target_type: int,
    target_stride: int,
    ignore_index: int,
    weights: int,
    losses: int,
    gradient: int,
    sample_ids: int,
    words: int,
    counts: int,
    missing: bool,
    rejected: int,
    num_samples: int,
    num_threads: int,
    /,
) -> tuple[int, int, int, int]: ...
def cross_entropy_forward_double(
    layout: LayoutPlan,
    logits: int,
    rows: int,
    row_stride: int,
    targets: int,
    target_type: int,
    target_stride: int,
    ignore_index: int,
    weights: int,
    losses: int,
    gradient: int,
    sample_ids: int,
    words: int,
    counts: int,
    missing: bool,
    rejected: int,
    num_samples: int,
    num_threads: int,
    /,
) -> tuple[int, int, int, int]: ...
def scale_gradient_float(
    layout: LayoutPlan, gradient: int, upstream: int, out: int, rows: int, num_threads: int, /
) -> None: ...
def scale_gradient_double(
    layout: LayoutPlan, gradient: int, upstream: int, out: int, rows: int, num_threads: int, /
) -> None: ...
def all_ones_float(values: int, n: int, /) -> bool: ...
def all_ones_double(values: int, n: int, /) -> bool: ...
def record(
    probabilities: int,
    sample_ids: int,
    rows: int,
    num_tasks: int,
    words: int,
    counts: int,
    missing: bool,
    rejected: int,
    num_samples: int,
    /,
) -> tuple[int, int, int, int]: ...
