"""BranchedLoss against ``sum_tk Z_tk loss_tk`` written out in float64, its gradients, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pymtg import BranchedLoss, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import BranchedNet, HeadOutputs, TaskAssignment

K, B = 3, 11
CLASSES = TaskLayout(["a", "b", "c"], [1, 4, 2], pos_weight=[2.0, None, None], class_weights=[None, None, [1.0, 3.0]])
MIXED = TaskLayout(
    ["a", "height", "b", "width", "c", "weight"],
    [1, 1, 4, 1, 2, 1],
    kinds=["classification", "regression", "classification", "regression", "classification", "regression"],
)


def huber(outputs, targets):
    return F.smooth_l1_loss(outputs[:, 0], targets.nan_to_num(0.5).to(outputs.dtype))


def squared(outputs, targets):
    return outputs.square().mean() + targets.double().nan_to_num(-1).clamp(min=0).mean()


def random_targets(layout, generator, rows=B, missing=0.3):
    """[B, T]: class numbers, or floating with NaN where the layout has regression tasks."""
    columns = []
    for kind, classes in zip(layout.kinds, layout.num_classes, strict=True):
        gone = torch.rand(rows, generator=generator) < missing
        if kind == "regression":
            columns.append(torch.randn(rows, generator=generator).masked_fill(gone, math.nan))
        else:
            labels = torch.randint(max(2, classes), (rows,), generator=generator)
            columns.append(labels.double().masked_fill(gone, math.nan))
    matrix = torch.stack([column.double() for column in columns], 1)
    return matrix if layout.has_regression else matrix.nan_to_num(-100).long()


def random_logits(layout, generator, dtype=torch.float64, branches=K, rows=B):
    logits = 3 * torch.randn(branches, rows, layout.num_logits, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_()


def random_shares(layout, generator, per_row=False, dtype=torch.float64):
    shape = (B, layout.num_tasks, K) if per_row else (layout.num_tasks, K)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def one_loss(layout, t, outputs, targets, loss=None, ignore_index=-100):
    """What each row adds to a task's loss in one branch [B] in float64, and whether its target is there."""
    x = outputs.double()
    if callable(loss):
        return loss(x, targets).reshape(1), torch.ones(1, dtype=torch.bool)
    if loss == "dense_cross_entropy":
        labels = targets.double().nan_to_num(ignore_index).long()
        each = F.cross_entropy(x, labels, reduction="none", ignore_index=ignore_index)
        there = labels != ignore_index
        return each.flatten(1).sum(1) if each.dim() > 1 else each, there
    if layout.kinds[t] == "regression":
        there = ~targets.isnan()
        gap = x - targets.reshape(x.shape).double().nan_to_num(0)
        each = gap.abs() if loss == "l1" else gap.square()
        each = torch.where(there.reshape(x.shape), each, 0)
        return each.flatten(1).sum(1), there
    labels = targets.double().nan_to_num(ignore_index)
    there = labels != ignore_index
    known = torch.where(there, labels, 0)
    if x.shape[1] == 1:
        weight = (
            None if layout.pos_weight is None or layout.pos_weight[t] is None else torch.tensor(layout.pos_weight[t])
        )
        each = F.binary_cross_entropy_with_logits(x[:, 0], known, pos_weight=weight, reduction="none")
    else:
        weights = None if layout.class_weights is None else layout.class_weights[t]
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        each = F.cross_entropy(x, known.long(), weight, reduction="none")
    return torch.where(there, each, 0), there


def truth(layout, outputs, targets, shares, losses=None, ignore_index=-100):
    """The sum, a branch and a task at a time; outputs by task [K, B, ...], targets by task [B, ...]."""
    total, means = torch.zeros((), dtype=torch.float64), torch.zeros(layout.num_tasks, K, dtype=torch.float64)
    for t, name in enumerate(layout):
        for k in range(K):
            loss = (losses or {}).get(name)
            each, there = one_loss(layout, t, outputs[name][k], targets[name], loss, ignore_index)
            each = each / max(1, int(there.sum()))
            share = shares[..., t, k].double()
            total = total + (each * share).sum()
            means[t, k] = each.detach().sum()
    return total, means


def by_task(layout, matrix, kind="targets"):
    if kind == "targets":
        return {name: matrix[:, t] for t, name in enumerate(layout)}
    return {name: matrix[..., layout.columns(name)] for name in layout}


def assert_matches(loss, layout, outputs, targets, shares, wanted, leaves, tolerance):
    total = loss(outputs, targets, shares)
    assert total.shape == ()
    torch.testing.assert_close(total.double(), wanted[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss.task_losses.double(), wanted[1], rtol=tolerance, atol=tolerance)
    assert loss.task_losses.shape == (layout.num_tasks, K)
    assert not loss.task_losses.requires_grad
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    expected = torch.autograd.grad(wanted[0], leaves, allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs.to(mine), rtol=tolerance, atol=tolerance)


TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("layout", [CLASSES, MIXED, MIXED.select([1, 3, 5]), MIXED.select([2, 3])], ids=len)
def test_default_losses(layout, per_row, dtype, generator):
    logits, shares = random_logits(layout, generator, dtype), random_shares(layout, generator, per_row)
    targets = random_targets(layout, generator)
    wanted = truth(layout, by_task(layout, logits, "outputs"), by_task(layout, targets), shares)
    assert_matches(BranchedLoss(layout), layout, logits, targets, shares, wanted, (logits, shares), TOLERANCES[dtype])


LOSSES = [
    {"width": "l1", "weight": "l1"},
    {"b": "dense_cross_entropy", "height": "l1"},
    {"height": huber, "c": squared},
    {"a": squared, "b": squared, "c": "dense_cross_entropy"},
    dict.fromkeys(MIXED, squared),
]


@pytest.mark.parametrize("losses", LOSSES, ids=[" ".join(losses) for losses in LOSSES])
@pytest.mark.parametrize("targets_as", ["matrix", "mapping"])
@pytest.mark.parametrize("per_row", [False, True])
def test_losses_by_name(losses, targets_as, per_row, generator):
    logits, shares = random_logits(MIXED, generator), random_shares(MIXED, generator, per_row)
    targets = random_targets(MIXED, generator)
    loss = BranchedLoss(MIXED, losses)
    given = targets if targets_as == "matrix" else by_task(MIXED, targets)
    if per_row and any(callable(each) for each in losses.values()):
        with pytest.raises(InvalidArgumentError, match="must not be a function for task"):
            loss(logits, given, shares)
        assert loss.task_losses is None
        return
    wanted = truth(MIXED, by_task(MIXED, logits, "outputs"), by_task(MIXED, targets), shares, losses)
    assert_matches(loss, MIXED, logits, given, shares, wanted, (logits, shares), 1e-9)


MAPS = TaskLayout(
    ["depth", "segments", "a", "normals", "b", "height"],
    [1, 5, 1, 3, 2, 1],
    kinds=["regression", *["classification"] * 2, "regression", "classification", "regression"],
)


def maps(generator, dtype=torch.float64):
    """Outputs of which three are maps, by task; and targets by task."""
    outputs = {
        "depth": torch.randn(K, B, 1, 4, 6, generator=generator, dtype=torch.float64),
        "segments": torch.randn(K, B, 5, 4, 6, generator=generator, dtype=torch.float64),
        "normals": torch.randn(K, B, 3, 2, generator=generator, dtype=torch.float64),
    }
    outputs = {name: found.to(dtype).requires_grad_() for name, found in outputs.items()}
    linear = random_logits(MAPS.select(["a", "b", "height"]), generator, dtype)
    targets = {
        "depth": torch.randn(B, 1, 4, 6, generator=generator),
        "segments": torch.randint(5, (B, 4, 6), generator=generator),
        "a": torch.randint(2, (B, 1), generator=generator, dtype=torch.uint8),
        "normals": torch.randn(B, 3, 2, generator=generator),
        "b": torch.randint(2, (B,), generator=generator),
        "height": torch.randn(B, generator=generator, dtype=torch.float64),
    }
    for target in targets.values():
        gone = torch.rand(target.shape, generator=generator) < 0.3
        target.masked_fill_(gone, math.nan if target.is_floating_point() else 9)
    return linear, outputs, targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_row", [False, True])
def test_maps_and_head_outputs(per_row, dtype, generator):
    linear, others, targets = maps(generator, dtype)
    losses = {"segments": "dense_cross_entropy", "normals": "l1"}
    shares = random_shares(MAPS, generator, per_row)
    loss = BranchedLoss(MAPS, losses, ignore_index=9)
    every = {**others, "a": linear[..., :1], "b": linear[..., 1:3], "height": linear[..., 3:]}
    plain = {**targets, "a": targets["a"][:, 0]}
    wanted = truth(MAPS, every, plain, shares, losses, ignore_index=9)
    leaves = (linear, *others.values(), shares)
    assert_matches(loss, MAPS, HeadOutputs(linear, others), targets, shares, wanted, leaves, TOLERANCES[dtype])


def test_fused_tasks_may_stand_among_the_others(generator):
    """A task with a head of its own that returns [K, B, C_t] has the same loss as with a linear one."""
    logits, shares = random_logits(CLASSES, generator), random_shares(CLASSES, generator)
    targets = random_targets(CLASSES, generator)
    loss, columns = BranchedLoss(CLASSES), by_task(CLASSES, logits, "outputs")
    wanted = loss(logits, targets, shares)
    for names in (["b"], ["a", "c"], ["c", "a", "b"]):
        rest = [columns[name] for name in CLASSES if name not in names]
        outputs = HeadOutputs(torch.cat(rest, -1) if rest else None, {name: columns[name] for name in names})
        torch.testing.assert_close(loss(outputs, targets, shares), wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16])
def test_targets_of_any_dtype_and_form(dtype, generator):
    """Floats hold NaN for "missing", integers ignore_index; as a matrix or by task."""
    labels = torch.randint(2, (B, 3), generator=generator)
    gone = torch.rand(B, 3, generator=generator) < 0.4
    logits, shares = random_logits(CLASSES, generator), random_shares(CLASSES, generator)
    wanted = BranchedLoss(CLASSES)(logits, labels.masked_fill(gone, -100), shares)
    given = labels.to(dtype).masked_fill(gone, math.nan if dtype.is_floating_point else 77)
    loss = BranchedLoss(CLASSES, ignore_index=77)
    torch.testing.assert_close(loss(logits, given, shares), wanted)
    torch.testing.assert_close(loss(logits, by_task(CLASSES, given), shares), wanted)
    mixed = {**by_task(CLASSES, given), "b": labels[:, 1].masked_fill(gone[:, 1], 77)}
    torch.testing.assert_close(loss(logits, mixed, shares), wanted)


def test_any_ignore_index_survives_floating_targets(generator):
    logits, shares = random_logits(CLASSES, generator), random_shares(CLASSES, generator)
    targets = random_targets(CLASSES, generator)
    wanted = BranchedLoss(CLASSES)(logits, targets, shares)
    floats = targets.float().masked_fill(targets == -100, math.nan)
    torch.testing.assert_close(BranchedLoss(CLASSES, ignore_index=2**24 + 1)(logits, floats, shares), wanted)


@pytest.mark.parametrize("value", [0.5, -1.5, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["matrix", "mapping", "dense"])
def test_fractions_are_no_class_numbers(value, form, generator):
    layout, losses = (MIXED, {"b": "dense_cross_entropy"}) if form == "dense" else (MIXED, None)
    targets = random_targets(layout, generator)
    targets[4, 2] = value
    loss = BranchedLoss(layout, losses)
    given = by_task(layout, targets) if form == "mapping" else targets
    with pytest.raises(
        InvalidArgumentError, match=rf"class numbers, or NaN where missing, for task 'b'; row 4 holds {value}"
    ):
        loss(random_logits(layout, generator), given, random_shares(layout, generator))
    assert loss.task_losses is None


@pytest.mark.parametrize("layout", [CLASSES, MIXED], ids=len)
def test_nothing_known_costs_nothing(layout, generator):
    logits, shares = random_logits(layout, generator), random_shares(layout, generator)
    nothing = torch.full((B, layout.num_tasks), math.nan)
    loss = BranchedLoss(layout)
    total = loss(logits, nothing, shares)
    gradients = torch.autograd.grad(total, (logits, shares))
    assert total == 0
    assert loss.task_losses.eq(0).all()
    assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("sampling", ["gumbel", "softmax", "per_sample"])
@pytest.mark.parametrize("layout", [CLASSES, MIXED], ids=len)
def test_gradcheck_from_theta_and_features(sampling, layout, generator):
    """Through softmax with fixed noise, the loss, and the heads of a network."""
    assignment = TaskAssignment(layout.num_tasks, 2, sampling=sampling, init="normal", seed=4).double()
    net = BranchedNet(nn.Identity(), 2, layout, features=3, trunk=nn.Linear(2, 3)).double()
    targets, loss = random_targets(layout, generator, rows=4), BranchedLoss(layout)
    nn.init.normal_(net.heads.linear.weight)
    names, values = zip(*net.named_parameters(), strict=True)
    inputs = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    theta = assignment.theta.detach().clone().requires_grad_()

    def objective(theta, inputs, *weights):
        assignment.draws = 0
        shares = torch.func.functional_call(assignment, {"theta": theta}, (0.8,), {"rows": 4})
        outputs = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (inputs,))
        return loss(outputs, targets, shares)

    leaves = [value.detach().clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(objective, (theta, inputs, *leaves))


def test_autocast_and_half_precision_shares(generator):
    layout = MIXED
    logits, shares = random_logits(layout, generator, torch.bfloat16), random_shares(layout, generator)
    targets = random_targets(layout, generator)
    wanted = BranchedLoss(layout)(logits, targets, shares.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = BranchedLoss(layout)(logits, targets, shares.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


class Step(nn.Module):
    def __init__(self, layout, sampling):
        super().__init__()
        self.net = BranchedNet(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU()), 2, layout, features=5)
        nn.init.normal_(self.net.heads.linear.weight)
        self.assignment = TaskAssignment(layout.num_tasks, 2, sampling=sampling)
        self.loss = BranchedLoss(layout)

    def forward(self, inputs, targets):
        shares = self.assignment.sample(1.5, rows=len(inputs))
        return self.loss(self.net(inputs), targets, shares) + 0.1 * self.assignment.entropy()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it where a graph breaks
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")  # torch 2.6 tells
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")  # and so does 2.11
@pytest.mark.parametrize(
    ("sampling", "layout"), [("gumbel", MIXED), ("per_sample", CLASSES)], ids=["gumbel", "per_sample"]
)
def test_a_compiled_step_is_the_same(layout, sampling, generator):
    step = Step(layout, sampling)
    targets = random_targets(layout, generator)
    inputs = torch.randn(B, 4, generator=generator)
    compiled = torch.compile(step, backend="eager")
    found = []
    for module in (step, compiled, compiled):
        step.assignment.draws = 0
        step.zero_grad()
        total = module(inputs, targets)
        total.backward()
        found.append([total.detach(), *(p.grad.clone() for p in step.parameters())])
        assert step.assignment.draws == 1
    for again in found[1:]:
        for one, other in zip(found[0], again, strict=True):
            torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def valid_call(**changes):
    generator = torch.Generator().manual_seed(0)
    call = {
        "layout": MIXED,
        "outputs": random_logits(MIXED, generator).detach(),
        "targets": random_targets(MIXED, generator),
        "assignment": random_shares(MIXED, generator).detach(),
        "losses": {"width": "l1", "height": huber},
    }
    return {**call, **changes}


def targets_with(name, value):
    targets = by_task(MIXED, valid_call()["targets"])
    if value is None:
        del targets[name]
        return targets
    return {**targets, name: value}


Z = torch.zeros
NO_LINEAR = {name: Z(K, B, c) for name, c in zip(MIXED, MIXED.num_classes, strict=True)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"outputs": [1.0]}, InvalidTypeError, "outputs must be a tensor or HeadOutputs; got list"),
        ({"outputs": Z(K, B, 10).long()}, InvalidTypeError, r"outputs of logits must be .*; got torch.int64"),
        ({"outputs": Z(K, B, 10).to_sparse()}, InvalidTypeError, "outputs of logits must be a dense .*sparse_coo"),
        ({"targets": Z(B, 6).to_sparse()}, InvalidTypeError, "targets must be a dense .*sparse_coo"),
        ({"targets": targets_with("b", Z(B).to_sparse())}, InvalidTypeError, "targets of task 'b' must be a dense"),
        ({"assignment": Z(6, K).to_sparse()}, InvalidTypeError, "assignment must be a dense .*sparse_coo"),
        ({"outputs": Z(B, 10)}, InvalidArgumentError, r"outputs must be \[K, B, 10\]"),
        ({"outputs": Z(10)}, InvalidArgumentError, r"outputs of logits must be \[K, B, ...\]; got \[10\]"),
        ({"outputs": Z(K, B, 9)}, InvalidArgumentError, r"outputs must be \[K, B, 10\].*got \[3, 11, 9\]"),
        ({"outputs": Z(0, B, 10)}, InvalidArgumentError, "outputs must be of at least one branch"),
        ({"outputs": Z(K, B + 1, 10)}, InvalidArgumentError, r"targets must be \[12, 6\]; got \[11, 6\]"),
        ({"outputs": HeadOutputs(None, {})}, InvalidArgumentError, "outputs must hold the logits of 'a'"),
        ({"outputs": HeadOutputs(None, {"a": Z(K, B, 1)})}, InvalidArgumentError, "hold the logits of 'height'"),
        ({"outputs": HeadOutputs(Z(K, B, 10), NO_LINEAR)}, InvalidArgumentError, "have no logits"),
        ({"outputs": HeadOutputs(Z(K, B, 10), {"z": Z(K, B, 1)})}, InvalidArgumentError, "'z'"),
        ({"outputs": HeadOutputs(Z(K, B, 9), {"a": 3})}, InvalidTypeError, "outputs of task 'a' must be .*; got int"),
        ({"outputs": HeadOutputs(Z(K, B, 9), {"a": Z(K)})}, InvalidArgumentError, "outputs of task 'a' must be"),
        ({"outputs": HeadOutputs(Z(K, B, 9), {"a": Z(2, B, 1)})}, InvalidArgumentError, r"'a' must be \[3, 11, ...\]"),
        ({"outputs": HeadOutputs(Z(K, B, 9), {"a": Z(K, B, 2)})}, InvalidArgumentError, r"'a' must be \[K, B, 1\]"),
        ({"outputs": HeadOutputs(Z(K, B, 9), None)}, InvalidTypeError, "others must be tensors by task name"),
        ({"targets": [[0]]}, InvalidTypeError, "targets must be a tensor or tensors by task name; got list"),
        ({"targets": Z(B)}, InvalidArgumentError, r"targets must be \[11, 6\]; got \[11\]"),
        ({"targets": Z(B, 5)}, InvalidArgumentError, r"targets must be \[11, 6\]; got \[11, 5\]"),
        ({"targets": Z(B, 6).long()}, InvalidTypeError, "targets must be floating point"),
        ({"targets": torch.full((B, 6), 2.0)}, InvalidArgumentError, "2"),
        ({"targets": targets_with("b", None)}, InvalidArgumentError, "every task of the layout; 'b' is not there"),
        ({"targets": targets_with("b", 3)}, InvalidTypeError, "targets of task 'b' must be a tensor; got int"),
        ({"targets": targets_with("b", Z(()))}, InvalidArgumentError, r"task 'b' must have 11 rows; got \[\]"),
        ({"targets": targets_with("b", Z(B - 1))}, InvalidArgumentError, r"'b' must have 11 rows; got \[10\]"),
        ({"targets": targets_with("b", Z(B, 2))}, InvalidArgumentError, r"'b' must be \[11\]; got \[11, 2\]"),
        ({"targets": targets_with("width", Z(B, 2))}, InvalidArgumentError, r"'width' must be \[11\]; got \[11, 2\]"),
        ({"assignment": [[1.0]]}, InvalidTypeError, "assignment must be a floating-point tensor; got list"),
        ({"assignment": Z(6, K).long()}, InvalidTypeError, "assignment must be .*got torch.int64"),
        ({"assignment": Z(6, K + 1)}, InvalidArgumentError, r"assignment must be \[6, 3\], .*got \[6, 4\]"),
        ({"assignment": Z(K, 6)}, InvalidArgumentError, "assignment must be"),
        ({"assignment": Z(1, 6, K)}, InvalidArgumentError, r"or \[11, 6, 3\] for one per row; got \[1, 6, 3\]"),
        ({"assignment": Z(B, 6, K)}, InvalidArgumentError, "must not be a function for task 'height'"),
        ({"losses": {"height": lambda o, t: o}}, InvalidArgumentError, r"'height' must return a scalar.*\(11, 1\)"),
        ({"losses": {"height": lambda o, t: 1.0}}, InvalidArgumentError, "'height' must return a scalar.*float"),
        ({"losses": {"height": "huber"}}, InvalidArgumentError, "losses must be one of 'mse', 'l1'.*got 'huber'"),
        ({"losses": {"a": "mse"}}, InvalidArgumentError, "losses must be one of 'cross_entropy'.*got 'mse'"),
        ({"losses": {"z": "mse"}}, InvalidArgumentError, "'z'"),
        ({"losses": {"a": 3}}, InvalidTypeError, "losses must be names or functions"),
        ({"losses": "mse"}, InvalidTypeError, "losses must be a mapping"),
        ({"layout": ["a"]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
        ({"ignore_index": 1.5}, InvalidTypeError, "ignore_index must be an integer; got 1.5"),
        ({"backend": "abacus"}, InvalidArgumentError, "backend must be"),
    ],
)
def test_refused(changes, error, message):
    call = valid_call(**changes)
    options = {name: call[name] for name in ("ignore_index", "backend") if name in call}

    def refused():
        loss = BranchedLoss(call["layout"], call["losses"], **options)
        if not changes.keys() & {"layout", "losses", "ignore_index", "backend"}:
            good = valid_call()
            loss(good["outputs"], good["targets"], good["assignment"])
        before = loss.task_losses
        try:
            loss(call["outputs"], call["targets"], call["assignment"])
        finally:
            assert loss.task_losses is before

    with pytest.raises(error, match=message):
        refused()


@pytest.mark.parametrize("shares", [Z(3, K).long(), Z(3, K + 1), Z(1, 3, K)])
def test_the_fused_operator_refuses_too(shares, generator):
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match="assignment must"):
        BranchedLoss(CLASSES)(random_logits(CLASSES, generator), random_targets(CLASSES, generator), shares)


def test_inputs_are_not_changed(generator):
    logits, shares = random_logits(MIXED, generator), random_shares(MIXED, generator)
    targets = random_targets(MIXED, generator)
    before = [value.detach().clone() for value in (logits, shares, targets)]
    BranchedLoss(MIXED, {"height": huber})(logits, targets, shares).backward()
    for value, old in zip((logits, shares, targets), before, strict=True):
        torch.testing.assert_close(value.detach(), old, rtol=0, atol=0, equal_nan=True)


def test_repr():
    text = repr(BranchedLoss(MIXED))
    assert text == "BranchedLoss(6 tasks, 3 of them fused, 10 logits)"
