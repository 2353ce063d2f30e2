archs: str
most_byte_classes: int
most_hashed: int

class LayoutPlan:
    def __init__(
        self,
        num_tasks: int,
        num_logits: int,
        offsets: int,
        pos_weight: int,
        class_weight: int,
        task_of_column: int,
        wide_labels: bool,
        handle: int,
        /,
    ) -> None: ...

class Tiles:
    def __init__(self, starts: int, count: int, rows: int, whole: bool, floats: int, /) -> None: ...

def tiling(offsets: list[int], rows: int, /) -> tuple[list[int], int, bool, int]: ...
def scratch_bytes(plan: LayoutPlan, tiles: Tiles, rows: int, recording: bool, /) -> int: ...
def cross_entropy(
    plan: LayoutPlan,
    tiles: Tiles,
    device: int,
    stream: int,
    logits: int,
    logit_type: int,
    rows: int,
    row_stride: int,
    column_stride: int,
    targets: int,
    target_type: int,
    target_row_stride: int,
    target_column_stride: int,
    ignore_index: int,
    weights: int,
    losses: int,
    gradient: int,
    sample_ids: int,
    wide_ids: bool,
    order: int,
    words: int,
    counts: int,
    missing: bool,
    rejected: int,
    num_samples: int,
    scratch: int,
    faults: int,
    /,
) -> int: ...
def record(
    plan: LayoutPlan,
    device: int,
    stream: int,
    gold: int,
    refused: int,
    rows: int,
    sample_ids: int,
    wide_ids: bool,
    order: int,
    words: int,
    counts: int,
    missing: bool,
    rejected: int,
    num_samples: int,
    memory: int,
    faults: int,
    /,
) -> int: ...
def scale_gradient(
    plan: LayoutPlan, device: int, stream: int, gradient: int, upstream: int, single: bool, out: int, rows: int, /
) -> int: ...
def error_name(error: int, /) -> str: ...
