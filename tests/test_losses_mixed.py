"""MultiTaskLoss over classification and regression tasks, against a float64 loop over rows and tasks."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _settings import new_seed
from torch import Tensor

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError, MissingLabelError, SampleIdError
from pymtg.functional import multitask_cross_entropy, weighted_multitask_cross_entropy

KINDS = {"c": "classification", "r": "regression"}
LAYOUTS = {
    "interleaved": TaskLayout(
        ["a", "x", "b", "y", "c"],
        [3, 1, 1, 1, 2],
        pos_weight=[None, None, 2.0, None, None],
        class_weights=[[1, 2, 0.5], None, None, None, None],
        kinds=[KINDS[k] for k in "crcrc"],
    ),
    "apart": TaskLayout(["a", "b", "x", "y"], [1, 4, 1, 1], kinds=[KINDS[k] for k in "ccrr"]),
    "regression": TaskLayout.regression(["x", "y", "z"]),
}
ROWS = 13


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> TaskLayout:
    return LAYOUTS[request.param]


def draw(layout: TaskLayout, generator: torch.Generator, missing: float = 0.3) -> tuple[Tensor, Tensor]:
    outputs = torch.randn(ROWS, layout.num_logits, generator=generator, dtype=torch.float64) * 2
    columns = [
        torch.randn(ROWS, generator=generator, dtype=torch.float64)
        if kind == "regression"
        else torch.randint(0, max(count, 2), (ROWS,), generator=generator).double()
        for kind, count in zip(layout.kinds, layout.num_classes, strict=True)
    ]
    targets = torch.stack(columns, 1)
    return outputs.requires_grad_(), targets.masked_fill(
        torch.rand(targets.shape, generator=generator) < missing, math.nan
    )


def one_loss(layout: TaskLayout, t: int, row: Tensor, target: float, l1: bool) -> Tensor:
    part = row[layout.columns(t)]
    if layout.kinds[t] == "regression":
        return (part[0] - target).abs() if l1 else (part[0] - target) ** 2
    if layout.num_classes[t] == 1:
        weight = None if layout.pos_weight is None else layout.pos_weight[t]
        pos = None if weight is None else torch.tensor([weight], dtype=torch.float64)
        return F.binary_cross_entropy_with_logits(part, part.new_tensor([target]), pos_weight=pos)
    weights = None if layout.class_weights is None else layout.class_weights[t]
    return -part.log_softmax(0)[int(target)] * (1.0 if weights is None else weights[int(target)])


def truth(layout: TaskLayout, outputs: Tensor, targets: Tensor, l1: tuple[str, ...] = ()) -> Tensor:
    losses = []
    for t, name in enumerate(layout.names):
        rows = [
            one_loss(layout, t, outputs[b], float(targets[b, t]), name in l1)
            for b in range(len(outputs))
            if not math.isnan(float(targets[b, t]))
        ]
        losses.append(torch.stack(rows).mean() if rows else outputs.new_zeros(()))
    return torch.stack(losses)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l1", [(), ("x",), ("x", "y")])
def test_losses_and_gradient(
    layout: TaskLayout, l1: tuple[str, ...], weighted: bool, generator: torch.Generator, backend: str
) -> None:
    outputs, targets = draw(layout, generator)
    targets[:, -1] = math.nan
    weights = torch.rand(layout.num_tasks, generator=generator, dtype=torch.float64) if weighted else None
    loss = MultiTaskLoss(layout, task_weights=weights, backend=backend, losses=dict.fromkeys(l1, "l1"))
    total = loss(outputs, targets)
    expected = truth(layout, outputs, targets, l1)
    assert loss.task_losses is not None
    torch.testing.assert_close(loss.task_losses, expected.detach())
    want = expected.sum() if weights is None else (weights * expected).sum()
    torch.testing.assert_close(total, want)
    got, wanted = (torch.autograd.grad(value, outputs)[0] for value in (total, want))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(layout: TaskLayout, dtype: torch.dtype, generator: torch.Generator) -> None:
    outputs, targets = draw(layout, generator)
    low = outputs.detach().to(dtype).requires_grad_()
    loss = MultiTaskLoss(layout)
    total = loss(low, targets.float())
    assert total.dtype == torch.float32
    torch.testing.assert_close(
        total.double(), truth(layout, low.detach().double(), targets).sum(), rtol=1e-5, atol=1e-6
    )
    assert torch.autograd.grad(total, low)[0].dtype == dtype


def test_a_function_as_loss(generator: torch.Generator) -> None:
    layout = LAYOUTS["interleaved"]
    outputs, targets = draw(layout, generator, missing=0)

    def huber(predictions: Tensor, labels: Tensor) -> Tensor:
        assert (predictions.shape, labels.shape) == ((ROWS, 1), (ROWS,))
        return F.smooth_l1_loss(predictions.squeeze(1), labels)

    loss = MultiTaskLoss(layout, losses={"x": huber, "a": lambda logits, y: F.cross_entropy(logits, y.long())})
    loss(outputs, targets).backward()
    expected = truth(layout, outputs.detach(), targets)
    expected[0] = F.cross_entropy(outputs.detach()[:, :3], targets[:, 0].long())
    expected[1] = huber(outputs.detach()[:, 3:4], targets[:, 1])
    torch.testing.assert_close(loss.task_losses, expected)
    for wrong, error, message in [
        (lambda p, y: p, InvalidArgumentError, r"scalar; that of 'x' returned shape \[13, 1\]"),
        (lambda p, y: 1.0, InvalidTypeError, "must return a tensor; that of 'x' returned float"),
    ]:
        with pytest.raises(error, match=message):
            MultiTaskLoss(layout, losses={"x": wrong})(outputs, targets)


def test_all_classification_takes_the_fused_call(generator: torch.Generator) -> None:
    layout = TaskLayout(["a", "b"], [1, 3])
    logits, targets = torch.randn(5, 4, generator=generator), torch.randint(0, 2, (5, 2), generator=generator)
    for losses in (None, {"a": "cross_entropy"}):
        loss = MultiTaskLoss(layout, losses=losses)
        assert loss._split is None
        assert torch.equal(loss(logits, targets), weighted_multitask_cross_entropy(logits, targets, layout)[0])
    own = MultiTaskLoss(layout, losses={"b": lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1)})
    own(logits, targets)
    assert own.task_losses is not None
    torch.testing.assert_close(own.task_losses[0], multitask_cross_entropy(logits, targets, layout)[0])


# the data map


def map_truth(layout: TaskLayout, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    p, right = torch.zeros_like(targets), torch.zeros_like(targets)
    for b in range(len(targets)):
        for t, kind in enumerate(layout.kinds):
            y, part = float(targets[b, t]), outputs[b, layout.columns(t)]
            if math.isnan(y):
                continue
            if kind == "regression":
                p[b, t] = math.exp(-((float(part[0]) - y) ** 2) / 2)
                right[b, t] = abs(float(part[0]) - y) < math.sqrt(2 * math.log(2))
            else:
                both = torch.stack([-part[0] / 2, part[0] / 2]) if len(part) == 1 else part
                p[b, t] = both.softmax(0)[int(y)]
                right[b, t] = int(both.argmax()) == int(y)
    return p, right


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_recording(layout: TaskLayout, missing: float, generator: torch.Generator, backend: str) -> None:
    data_map = DataMap(ROWS + 4, layout, missing=missing > 0)
    loss = MultiTaskLoss(layout, data_map, backend=backend)
    values, rights, counts = [], [], []
    _, targets = draw(layout, generator, missing)
    for _ in range(3):
        outputs, _ = draw(layout, generator)
        order = torch.randperm(ROWS, generator=generator)
        loss(outputs[order], targets[order], order + 2)
        p, right = map_truth(layout, outputs.detach(), targets)
        values.append(p), rights.append(right), counts.append(~targets.isnan())
    known = counts[0]
    mean, right = torch.stack(values).mean(0), torch.stack(rights).mean(0)
    torch.testing.assert_close(data_map.mean[2:-2].double(), torch.where(known, mean, 0), rtol=1e-5, atol=1e-6)
    std = torch.stack(values).std(0, correction=0)
    torch.testing.assert_close(data_map.std[2:-2].double(), torch.where(known, std, 0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(data_map.correctness[2:-2].double(), torch.where(known, right, 0), rtol=1e-6, atol=1e-6)
    assert data_map.count[2:-2].eq(3 * known).all()
    assert not data_map.count[:2].any()


def test_rows_with_a_loss_that_is_not_finite_are_refused(layout: TaskLayout, generator: torch.Generator) -> None:
    outputs, targets = draw(layout, generator, missing=0)
    outputs = outputs.detach()
    first = outputs[:, layout.columns("x")]
    first[3], first[5], first[6] = math.inf, math.nan, 1e200
    data_map = DataMap(ROWS, layout)
    MultiTaskLoss(layout, data_map)(outputs, targets, torch.arange(ROWS))
    assert data_map.num_rejected == 3
    assert data_map.count[:, 0].tolist() == [int(row not in (3, 5, 6)) for row in range(ROWS)]


def test_a_refused_row_counts_only_where_its_label_is(generator: torch.Generator) -> None:
    layout = LAYOUTS["regression"]
    outputs, targets = draw(layout, generator, missing=0)
    outputs = outputs.detach()
    outputs[2, 1], targets[2, 1] = math.nan, math.nan
    data_map = DataMap(ROWS, layout, missing=True)
    MultiTaskLoss(layout, data_map)(outputs, targets, torch.arange(ROWS))
    assert data_map.num_rejected == 0
    assert data_map.count[2].tolist() == [1, 0, 1]


def test_recording_only_in_training_mode_and_not_in_a_backward(layout: TaskLayout, generator: torch.Generator) -> None:
    outputs, targets = draw(layout, generator, missing=0)
    data_map = DataMap(ROWS, layout)
    loss = MultiTaskLoss(layout, data_map)
    loss.eval()(outputs, targets)
    with loss.train().paused():
        loss(outputs, targets)
    assert not data_map.count.any()
    ids = torch.arange(ROWS)
    total = torch.utils.checkpoint.checkpoint(lambda x: loss(x, targets, ids), outputs, use_reentrant=False)
    total.backward()
    assert data_map.count.eq(1).all()
    assert pickle.loads(pickle.dumps(loss)).data_map.count.eq(1).all()


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        ({"ids": None}, InvalidArgumentError, "sample_ids must be given with a data map"),
        ({"ids": torch.arange(4)}, InvalidArgumentError, r"sample_ids must be \[13\]"),
        ({"ids": torch.arange(ROWS) + 1}, SampleIdError, "row 12 holds 13"),
        ({"column": 0, "value": 0.5}, InvalidArgumentError, "class numbers.*task 'a'; row 4 holds 0.5"),
        ({"column": 0, "value": 3.0}, InvalidArgumentError, "targets must be 0..2 or ignore_index for task 'a'"),
        ({"column": 1, "value": math.nan}, MissingLabelError, "complete labels"),
        ({"columns": 4}, InvalidArgumentError, r"targets must be \[13, 5\]"),
        ({"dtype": torch.long}, InvalidTypeError, "targets must be floating point, NaN where missing"),
        ({"logits": 7}, InvalidArgumentError, r"logits must be \[B, 8\]; got \[13, 7\]"),
    ],
)
def test_refusals_leave_the_map_alone(break_it: dict[str, Any], error: type[Exception], message: str) -> None:
    layout = LAYOUTS["interleaved"]
    outputs, targets = draw(layout, torch.Generator().manual_seed(new_seed()), missing=0)
    data_map = DataMap(ROWS, layout)
    if "column" in break_it:
        targets[4, break_it["column"]] = break_it["value"]
    targets = targets[:, : break_it.get("columns", 5)].to(break_it.get("dtype", torch.float64))
    with pytest.raises(error, match=message):
        MultiTaskLoss(layout, data_map)(
            outputs[:, : break_it.get("logits", 8)], targets, break_it.get("ids", torch.arange(ROWS))
        )
    assert not data_map.count.any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0.0] * 5] * 2, "targets must be a tensor; got list"),
        (torch.zeros(2, 5).to_sparse(), r"targets must be a dense \(strided\) tensor; got torch.sparse_coo"),
    ],
)
def test_targets_that_are_no_dense_tensor_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        MultiTaskLoss(LAYOUTS["interleaved"])(torch.zeros(2, 8), targets)


def test_construction_refuses() -> None:
    layout = LAYOUTS["interleaved"]
    with pytest.raises(InvalidArgumentError, match="one target a row here; 'a' has 'dense_cross_entropy'"):
        MultiTaskLoss(layout, losses={"a": "dense_cross_entropy"})
    with pytest.raises(InvalidArgumentError, match="one output each here; 'box' has 4"):
        MultiTaskLoss(TaskLayout(["box"], [4], kinds=["regression"]))
    with pytest.raises(InvalidArgumentError, match="no task is named 'w'"):
        MultiTaskLoss(layout, losses={"w": "l1"})


def test_the_fused_functions_refuse_regression() -> None:
    layout = LAYOUTS["interleaved"]
    for function in (multitask_cross_entropy, weighted_multitask_cross_entropy):
        with pytest.raises(InvalidArgumentError, match="classification tasks only, 'x' is a regression; MultiTaskLoss"):
            function(torch.zeros(2, 8), torch.zeros(2, 5), layout)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiles_without_a_graph_break(layout: TaskLayout, generator: torch.Generator) -> None:
    torch.compiler.reset()
    loss = MultiTaskLoss(layout, losses={"x": "l1"})
    outputs, targets = draw(layout, generator)
    compiled = torch.compile(lambda x, y: loss(x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs, targets), truth(layout, outputs, targets, ("x",)).sum())


@pytest.mark.filterwarnings("error")
def test_a_loss_that_pairs_every_row_with_every_other_is_refused(generator: torch.Generator) -> None:
    """torch only warns of outputs [B, 1] and targets [B]; other warnings of a function stay warnings."""
    layout = TaskLayout.regression(["x", "y"])
    outputs, targets = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator)
    loss = MultiTaskLoss(layout, losses={"y": F.smooth_l1_loss})
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"'y' must not pair .* outputs are \[6, 1\], its targets \[6\]"):
            loss(outputs, targets)
    with pytest.raises(InvalidArgumentError, match="'y' must not pair"):  # with another number of rows, too
        MultiTaskLoss(layout, losses={"y": F.huber_loss})(outputs[:3], targets[:3])
    fitting = MultiTaskLoss(layout, losses={"y": lambda o, t: F.smooth_l1_loss(o[:, 0], t)})
    expected = F.mse_loss(outputs[:, 0], targets[:, 0]) + F.smooth_l1_loss(outputs[:, 1], targets[:, 1])
    torch.testing.assert_close(fitting(outputs, targets), expected)


def test_memberships_of_groups_as_weights_without_a_warning() -> None:
    weights = np.array([0.25, 0.75])
    weights.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MultiTaskLoss(TaskLayout.binary(["a", "b"]), task_weights=weights).task_weights.tolist() == [0.25, 0.75]
