"""Types of the compiled extension. Arguments are addresses and sizes; only the wrappers named here call it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
def cross_entropy_heads_float(
    layout: LayoutPlan,
    logits: int,
    heads: int,
    head_stride: int,
    rows: int,
    row_stride: int,
    targets: int,
    target_type: int,
    target_stride: int,
    ignore_index: int,
    weights: int,
    per_row: bool,
    total: int,
    losses: int,
    gradient: int,
    row_losses: int,
    num_threads: int,
    /,
) -> tuple[int, int, int, int]: ...
def cross_entropy_heads_double(
    layout: LayoutPlan,
    logits: int,
    heads: int,
    head_stride: int,
    rows: int,
    row_stride: int,
    targets: int,
    target_type: int,
    target_stride: int,
    ignore_index: int,
    weights: int,
    per_row: bool,
    total: int,
    losses: int,
    gradient: int,
    row_losses: int,
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

# --- clustering: called by pymtg/_gram.py, _clustering.py and cluster.py; arrays are C-contiguous ---

_F64 = npt.NDArray[np.float64]
_Float = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int32]

def gram_add(gram: _F64, block: _Float, points_as_rows: bool, num_threads: int) -> None: ...
def squared_distances(gram: _F64, num_threads: int) -> _F64: ...
def distinct_points(distances: _F64) -> tuple[int, _Labels]: ...
def kmeans_distances(
    distances: _F64, clusters: int, starts: int, max_iter: int, seed: int, local_search: bool, num_threads: int
) -> tuple[_Labels, float, int, bool]: ...
def fuzzy_distances(
    distances: _F64, labels: _Labels, clusters: int, fuzzifier: float, tol: float, max_iter: int, num_threads: int
) -> tuple[_F64, _F64, _F64, float, int, bool]: ...
def centroid_distances(distances: _F64, labels: _Labels, clusters: int) -> _F64: ...
def combine_points(points: _Float, coefficients: _F64, num_threads: int) -> _F64: ...
def silhouette(distances: _F64, labels: _Labels, clusters: int) -> float: ...
def fuzzify(squared: _F64, fuzzifier: float, num_threads: int) -> _F64: ...
def lloyd_points(
    points: _Float, clusters: int, starts: int, max_iter: int, tol: float, seed: int, grid: bool, num_threads: int
) -> tuple[_F64, _Labels, float, int, bool]: ...
def fuzzy_points(
    points: _Float, centers: _F64, fuzzifier: float, tol: float, max_iter: int, num_threads: int
) -> tuple[_F64, _F64, float, int, bool]: ...
def center_distances(points: _Float, centers: _F64, num_threads: int) -> _F64: ...
