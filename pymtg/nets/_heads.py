"""K x T heads on the features of K branches: the linear ones as one batched product, any other as modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._joints import Aggregator, fan_out, scale_gradient
from pymtg.nets._slicing import forget, slice_stacks
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout

HeadFactory = Callable[[int, int], nn.Module]


class HeadOutputs(NamedTuple):
    """What the heads of a network return of which not all are linear."""

    logits: Tensor | None
    """``[K, B, C]`` of the linear tasks, in the layout's order; None if there are none."""
    others: dict[str, Tensor]
    """Per other task the outputs ``[K, B, ...]`` of its heads."""


class LinearHeads(nn.Module):
    """A linear head per branch and task: weight ``[K, features, C]`` and bias ``[K, C]``, one batched product.

    All start at zero, so that no branch begins with a preference for a task: with random heads planted groups are found
    less often (tests/test_trainers_dmtg.py).
    """

    def __init__(self, num_branches: int, features: int, layout: TaskLayout) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.zeros(num_branches, features, layout.num_logits))
        self.bias = nn.Parameter(torch.zeros(num_branches, layout.num_logits))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[K, B, C]`` of features ``[K, B, D]``."""
        self._check(features, 3)
        return torch.baddbmm(self.bias.unsqueeze(1), features, self.weight)

    def from_copies(self, copies: Tensor) -> Tensor:
        """Return logits ``[K, B, C]`` from a copy of the features for every task, ``[K, T, B, D]``.

        The copies' gradients come from one batched product, the tasks padded to the widest.
        """
        self._check(copies, 4)
        widest, counts = max(self.layout.num_classes), self.layout.num_classes
        padded = [self.layout.offsets[t] + min(c, n - 1) for t, n in enumerate(counts) for c in range(widest)]
        K, T, D = len(self.weight), len(counts), self.weight.shape[1]
        weight = self.weight[:, :, padded].view(K, D, T, widest).transpose(1, 2)
        bias = self.bias[:, padded].view(K, T, 1, widest)
        logits: Tensor = (torch.matmul(copies, weight) + bias).transpose(1, 2).flatten(2)
        return logits[..., [t * widest + c for t, n in enumerate(counts) for c in range(n)]]

    def _check(self, features: Tensor, ndim: int) -> None:
        width = self.weight.shape[1]
        if features.ndim != ndim or features.shape[-1] != width:
            raise InvalidArgumentError(
                f"branches must return [batch, {width}] features for linear heads; "
                f"got {tuple(features.shape[ndim - 2 :])}"
            )

    def module(self, k: int, tasks: Sequence[str]) -> nn.Linear:
        """Return one linear layer that holds branch k's heads for these tasks, in this order."""
        columns = [c for name in tasks for c in range(self.weight.shape[2])[self.layout.columns(name)]]
        weight = self.weight.detach()[k][:, columns].T.contiguous()
        layer = nn.Linear(self.weight.shape[1], len(columns), device="meta")
        layer.weight = nn.Parameter(weight, self.weight.requires_grad)
        layer.bias = nn.Parameter(self.bias.detach()[k][columns].clone(), self.bias.requires_grad)
        return layer

    def load_net(self, k: int, net: MultiHeadNet) -> None:
        """Set branch k's heads of the tasks that a network has too to those of the network."""
        with torch.no_grad():
            for task in (name for name in self.layout if name in net.layout.names):
                columns, rows = self.layout.columns(task), net.layout.columns(task)
                self.weight[k, :, columns].copy_(net.head.weight[rows].T)
                self.bias[k, columns].copy_(net.head.bias[rows])


class BranchedHeads(nn.Module):
    """All heads of all branches; see :class:`pymtg.nets.BranchedNet` for the arguments.

    Attributes
    ----------
    linear
        :class:`LinearHeads` of the tasks that have such heads, or None.
    others
        Module lists: branch, then task in the order of `custom`.
    custom
        Names of the tasks whose heads are modules of the user's.
    """

    def __init__(
        self,
        num_branches: int,
        features: int,
        layout: TaskLayout,
        head: HeadFactory | Mapping[str, HeadFactory] | None,
        gradient_scaling: bool,
        aggregator: Aggregator | None,
    ) -> None:
        super().__init__()
        factories = checked_factories(head, layout)
        self.layout = layout
        self.custom = tuple(factories)
        self.factor = 1 / math.sqrt(layout.num_tasks) if gradient_scaling else None
        self.aggregator = aggregator
        rest = [name for name in layout if name not in factories]
        self.linear = LinearHeads(num_branches, features, layout.select(rest)) if rest else None
        self.others = nn.ModuleList(
            nn.ModuleList(_made(factory, name, features, layout) for name, factory in factories.items())
            for _ in range(num_branches)
        )
        _refuse_repeated(self.others)

    def forward(self, features: Tensor) -> Tensor | HeadOutputs:
        """Return logits ``[K, B, C]`` where all heads are linear, else :class:`HeadOutputs`."""
        if self.aggregator is not None:
            return self._aggregated(features, self.aggregator)
        if self.factor is not None:
            features = scale_gradient(features, self.factor)
        logits: Tensor | None = None if self.linear is None else self.linear(features)
        if logits is not None and not self.custom:
            return logits
        return HeadOutputs(logits, self._others([[own] * len(self.custom) for own in features.unbind()]))

    def _aggregated(self, features: Tensor, aggregator: Aggregator) -> Tensor | HeadOutputs:
        copies = fan_out(features, self.layout.num_tasks, aggregator)
        if self.linear is not None and not self.custom:
            return self.linear.from_copies(copies)
        at = self.layout.position
        logits = None
        if self.linear is not None:
            logits = self.linear.from_copies(copies[:, [at(name) for name in self.linear.layout]])
        return HeadOutputs(logits, self._others([[own[at(name)] for name in self.custom] for own in copies]))

    def _others(self, features: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """`features`: branch, then task in the order of `custom`."""
        return {
            name: torch.stack([self.head(k, name)(own[i]) for k, own in enumerate(features)])
            for i, name in enumerate(self.custom)
        }

    def stacked(self) -> Iterator[nn.Parameter]:
        """Yield the parameters whose first dimension are the branches."""
        if self.linear is not None:
            yield from self.linear.parameters()

    def drop(self, keep: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the heads of the branches at these positions, in an optimizer too."""
        if self.linear is not None:
            slice_stacks(self.linear, keep, optimizer)
        before = set(self.others.parameters())
        self.others = nn.ModuleList(self.others[k] for k in keep)
        forget(before - set(self.others.parameters()), optimizer)

    def head(self, k: int, name: str) -> nn.Module:
        """Return branch k's head of a task that is not linear."""
        own = self.others[k]
        assert isinstance(own, nn.ModuleList)
        return own[self.custom.index(name)]


def checked_factories(head: Any, layout: TaskLayout) -> dict[str, HeadFactory]:
    """Return {task: factory} of the heads that are not linear, in the layout's order, or raise a typed error."""
    if head is None:
        return {}
    if isinstance(head, Mapping):
        for name in head:
            layout.index(name)
        factories = {name: head[name] for name in layout if name in head}
    else:
        factories = dict.fromkeys(layout, head)
    for name, factory in factories.items():
        if isinstance(factory, nn.Module) or not callable(factory):
            raise InvalidTypeError(
                f"head must make modules, (features, num_classes) -> module; got {type(factory).__name__} for {name!r}"
            )
    return factories


def _made(factory: HeadFactory, name: str, features: int, layout: TaskLayout) -> nn.Module:
    module = factory(features, layout.num_classes[layout.index(name)])
    if not isinstance(module, nn.Module):
        raise InvalidTypeError(f"head must return a torch.nn.Module for {name!r}; got {type(module).__name__}")
    return module


def _refuse_repeated(heads: nn.ModuleList) -> None:
    every = [id(head) for own in heads if isinstance(own, nn.ModuleList) for head in own]
    if len(set(every)) < len(every):
        raise InvalidArgumentError("head must make a new module for every branch and task; it returned one twice")
