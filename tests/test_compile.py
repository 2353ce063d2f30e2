"""torch.compile(fullgraph=True): the same losses, gradients and maps as without. Few cases: each takes seconds."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from pymtg import DataMap, MultiTaskLoss, TaskLayout
from pymtg.functional import multitask_cross_entropy

# What torch's compiler does itself, to every autograd.Function and in its own modules.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    def __init__(self, layout: TaskLayout, data_map: DataMap | None, backend: str) -> None:
        super().__init__()
        self.linear = nn.Linear(5, layout.num_logits)
        weights = torch.arange(layout.num_tasks) / 2
        self.loss = MultiTaskLoss(layout, data_map, weights, backend=backend)

    def forward(self, inputs: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.linear(inputs), targets, ids)


def layout_of_three() -> TaskLayout:
    return TaskLayout(["a", "b", "c"], [1, 3, 2], [2.0, None, None])


def batch(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    targets = (torch.rand(rows, 3, generator=generator) * torch.tensor([2, 3, 2])).long()
    return torch.randn(rows, 5, generator=generator), targets, torch.randint(40, (rows,), generator=generator)


@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
def test_module_with_map(engine: str, backend: str, generator: torch.Generator) -> None:
    """Batches of several sizes, duplicates among the ids: each recorded once, the state equal bit for bit."""
    plain = Model(layout_of_three(), DataMap(40, layout_of_three()), backend)
    fused = Model(layout_of_three(), DataMap(40, layout_of_three()), backend)
    fused.load_state_dict(plain.state_dict())
    compiled = torch.compile(fused, fullgraph=True, backend=engine)
    for rows in (7, 12, 33, 7):
        inputs, targets, ids = batch(rows, generator)
        expected, got = plain(inputs, targets, ids), compiled(inputs, targets, ids)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(fused.loss.task_losses, plain.loss.task_losses)
        for model, loss in ((plain, expected), (fused, got)):
            model.zero_grad()
            loss.backward()
        torch.testing.assert_close(fused.linear.weight.grad, plain.linear.weight.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(fused.loss.data_map.count, plain.loss.data_map.count)
    torch.testing.assert_close(fused.loss.data_map.mean, plain.loss.data_map.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fused.loss.data_map.std, plain.loss.data_map.std, rtol=1e-5, atol=1e-6)
    assert int(fused.loss.data_map.count[:, 0].sum()) == 7 + 12 + 33 + 7

    fused.eval()
    compiled(*batch(7, generator))
    assert int(fused.loss.data_map.count[:, 0].sum()) == 59


def test_functional_in_a_train_step(backend: str, generator: torch.Generator) -> None:
    """Upstream weights that are learnt, the state exact, an optimizer in the loop."""
    layout = layout_of_three()
    maps = [DataMap(40, layout), DataMap(40, layout)]
    steps = [(inputs, targets, ids) for inputs, targets, ids in (batch(9, generator) for _ in range(3))]
    start = torch.randn(5, layout.num_logits, generator=generator)

    def train(run: bool, data_map: DataMap) -> tuple[Tensor, Tensor]:
        weight, scale = start.clone().requires_grad_(), torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight, scale], lr=0.1)

        def objective(inputs: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
            losses = multitask_cross_entropy(
                inputs @ weight, targets, layout, data_map=data_map, sample_ids=ids, backend=backend
            )
            return (losses * scale.exp() - scale).sum()

        objective = torch.compile(objective, fullgraph=True) if run else objective
        for arguments in steps:
            optimizer.zero_grad()
            objective(*arguments).backward()
            optimizer.step()
        return weight.detach(), scale.detach()

    torch.testing.assert_close(train(True, maps[0]), train(False, maps[1]), rtol=1e-5, atol=1e-6)
    assert torch.equal(maps[0].state.counts, maps[1].state.counts)
    torch.testing.assert_close(maps[0].mean, maps[1].mean, rtol=1e-5, atol=1e-6)


def test_layouts_that_come_and_go(backend: str, generator: torch.Generator) -> None:
    """A compiled call keeps what it was compiled for, and sees that another layout is another."""

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    def losses_of(logits: Tensor, targets: Tensor, layout: TaskLayout) -> Tensor:
        return multitask_cross_entropy(logits, targets, layout, backend=backend)

    for weight in (1.0, 2.0, 3.0, 2.0):
        _, targets, _ = batch(4, generator)
        logits = torch.randn(4, 6, generator=generator).requires_grad_()
        layout = TaskLayout(["a", "b", "c"], [1, 3, 2], [weight, None, None])
        expected = multitask_cross_entropy(logits, targets, layout, backend=backend)
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), logits)
        got, expected = losses_of(logits, targets, layout), expected.detach()  # which keeps no layout
        del layout
        gc.collect()
        (gradient,) = torch.autograd.grad(got.square().sum(), logits)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(gradient, expected_gradient)


def test_transposed_logits(backend: str, generator: torch.Generator) -> None:
    layout = layout_of_three()
    _, targets, _ = batch(4, generator)
    weight = torch.randn(6, 4, generator=generator).requires_grad_()

    def loss(weight: Tensor) -> Tensor:
        return multitask_cross_entropy(weight.T, targets, layout, backend=backend).square().sum()

    (expected,) = torch.autograd.grad(loss(weight), weight)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(weight), weight)
    torch.testing.assert_close(got, expected)
