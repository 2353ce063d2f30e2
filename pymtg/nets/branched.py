"""K branches with a head for every task each: the network in which DMTG learns its groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._arrange import arranged
from pymtg.nets._branch_modules import branch_modules, feature_width
from pymtg.nets._copying import copy_of
from pymtg.nets._heads import BranchedHeads, HeadFactory, HeadOutputs
from pymtg.nets._joints import Aggregator, fan_out, scale_gradient
from pymtg.nets._positions import checked_position, checked_positions
from pymtg.nets._separate import SeparateBranches
from pymtg.nets._slicing import check_states
from pymtg.nets._warm_start import check_heads, checked_nets, split_backbone
from pymtg.nets.backbones import checked_size
from pymtg.nets.grouped import GroupedNet
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout

__all__ = ["BranchedNet", "HeadOutputs"]


class BranchedNet(nn.Module):
    """An optional shared trunk, K branches, and on every branch a head for every task: K x T heads.

    Parameters
    ----------
    branch
        A module, deep-copied K times with its weights (as the released code does); or a factory ``() -> module`` that
        is called K times; or a sequence of K modules, used as they are (copied where they run
        together). From ``[B, ...]`` to ``[B, features]``.
    num_branches
        K.
    layout
        The tasks; C logits in all.
    features
        Width of a branch's output, D; taken from its attribute `out_features` if not given.
    trunk
        A module before the branches that all share.
    head
        None for linear heads, which are one ``[K, D, C]`` parameter and one batched product, and start at zero. Or a
        factory ``(features, num_classes) -> module``, called for every branch and task; or ``{task name: factory}`` for
        some tasks, the others linear. Such heads may take and return dense maps.
    batched
        Whether K copies of one architecture run together on stacked parameters: ``"auto"`` where that is known to be
        faster, True (an error where it cannot be done), or False. Branches with hooks, on modules or parameters, run
        one by one. The keys of a ``state_dict`` differ between branches together and one by one: set True or False
        where checkpoints are to be exchanged.
    gradient_scaling
        Whether every branch's gradient into the trunk's output is scaled by 1 / sqrt(K) and every head's into its
        branch's features by 1 / sqrt(T), as in the released code.
    aggregator
        A callable from a matrix ``[m, n]`` of m gradients to one ``[n]``, such as ``torchjd.aggregation.UPGrad()`` (of
        the extra ``pymtg[torchjd]``), in place of the sum at both joints: over the K branches at the trunk's output,
        over the T tasks at each branch's. Another shape is an InvalidArgumentError in the backward.

    Attributes
    ----------
    num_branches, layout, features
        K, the tasks and D.
    branch_ids
        The original numbers of the branches that are left (see :meth:`drop_branches`).
    batched
        Whether the branches run together.

    Raises
    ------
    InvalidArgumentError
        For a wrong number of branches, one module twice, an unknown or differing width, heads for unknown tasks, or
        `gradient_scaling` together with an aggregator.
    InvalidTypeError
        For arguments of other types.

    Notes
    -----
    Section 6 of the design; Gao et al., "DMTG: One-Shot Differentiable Multi-Task Grouping", ICML 2024.

    Examples
    --------
    >>> from pymtg.nets import MLP
    >>> net = BranchedNet(lambda: MLP(64, (32,)), 3, TaskLayout.binary(["odd", "loop"]))
    >>> net(torch.zeros(5, 64)).shape
    torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        branch: nn.Module | Callable[[], nn.Module] | Sequence[nn.Module],
        num_branches: int,
        layout: TaskLayout,
        features: int | None = None,
        trunk: nn.Module | None = None,
        head: HeadFactory | Mapping[str, HeadFactory] | None = None,
        *,
        batched: str | bool = "auto",
        gradient_scaling: bool = False,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__()
        _check_options(layout, trunk, batched, gradient_scaling, aggregator)
        modules = branch_modules(branch, checked_size(num_branches, "num_branches"))
        self.layout = layout
        self.features = feature_width(modules, features)
        self.branch_ids = tuple(range(len(modules)))
        self.gradient_scaling = gradient_scaling
        self.aggregator = aggregator
        self.trunk = trunk
        self.branches = arranged(modules, batched, fanned=trunk is not None and aggregator is not None)
        self.heads = BranchedHeads(len(modules), self.features, layout, head, self.gradient_scaling, aggregator)

    @classmethod
    def from_factory(
        cls, model: Callable[[TaskLayout], MultiHeadNet], layout: TaskLayout, num_branches: int, **options: Any
    ) -> BranchedNet:
        """Return a network whose branches are the backbones of K networks that a model factory makes.

        Parameters
        ----------
        model
            ``layout -> MultiHeadNet``, as :func:`pymtg.nets.mlp` returns; called K times.
        layout
            The tasks.
        num_branches
            K.
        **options
            Further arguments of :class:`BranchedNet`.

        Raises
        ------
        InvalidTypeError
            If `model` cannot be called or makes anything but a :class:`pymtg.nets.MultiHeadNet`.
        """
        if isinstance(model, nn.Module) or not callable(model):
            raise InvalidTypeError(f"model must be a factory, layout -> MultiHeadNet; got {type(model).__name__}")
        nets = [model(layout) for _ in range(checked_size(num_branches, "num_branches"))]
        for net in nets:
            if not isinstance(net, MultiHeadNet):
                raise InvalidTypeError(f"model must make a MultiHeadNet; got {type(net).__name__}")
        options.setdefault("features", nets[0].head.in_features)
        return cls([net.backbone for net in nets], len(nets), layout, **options)

    @property
    def num_branches(self) -> int:
        """K, the number of branches that are left."""
        return len(self.branch_ids)

    @property
    def batched(self) -> bool:
        """Whether the branches run together on stacked parameters."""
        return not isinstance(self.branches, SeparateBranches)

    def forward(self, inputs: Tensor) -> Tensor | HeadOutputs:
        """Return logits ``[K, B, C]`` where all heads are linear, else :class:`HeadOutputs`.

        Raises InvalidArgumentError if the branches return features of another width than linear heads take.
        """
        shared = inputs
        if self.trunk is not None:
            shared = self._joint(self.trunk(inputs))
        outputs: Tensor | HeadOutputs = self.heads(self.branches(shared))
        return outputs

    def _joint(self, shared: Tensor) -> Tensor:
        if self.aggregator is not None:
            return fan_out(shared[None], self.num_branches, self.aggregator)[0]
        return scale_gradient(shared, 1 / math.sqrt(self.num_branches)) if self.gradient_scaling else shared

    def forward_chosen(self, inputs: Tensor, labels: Sequence[int] | Tensor) -> Tensor | dict[str, Tensor]:
        """Return every task's output from one branch.

        Parameters
        ----------
        inputs
            ``[B, ...]``.
        labels
            Per task its branch, a position among the branches that are left.

        Returns
        -------
        Tensor | dict
            Logits ``[B, C]``; where a head returns other than ``[B, C_t]``, ``{task: outputs}``. All branches are
            computed: :meth:`prune` gives a network that computes only what is needed.

        Raises
        ------
        InvalidArgumentError
            For labels that are not one position of a branch per task.
        InvalidTypeError
            For labels that are no integers.
        """
        chosen = self._checked_labels(labels)
        outputs = self(inputs)
        if isinstance(outputs, Tensor):
            return _columns(outputs, self.layout, chosen)
        parts = {name: own[chosen[self.layout.index(name)]] for name, own in outputs.others.items()}
        if self.heads.linear is not None and outputs.logits is not None:
            linear = self.heads.linear.layout
            logits = _columns(outputs.logits, linear, [chosen[self.layout.index(name)] for name in linear])
            parts |= dict(zip(linear, linear.split(logits), strict=True))
        ordered = {name: parts[name] for name in self.layout}
        return torch.cat(list(ordered.values()), 1) if all(p.ndim == 2 for p in parts.values()) else ordered

    def _checked_labels(self, labels: Sequence[int] | Tensor) -> list[int]:
        values = checked_positions(labels, "labels", self.num_branches)
        if len(values) != self.layout.num_tasks:
            raise InvalidArgumentError(
                f"labels must be {self.layout.num_tasks}, one branch per task; got {len(values)}"
            )
        return values

    def branch_module(self, k: int) -> nn.Module:
        """Return a plain module with a copy of the weights and buffers of the branch at position k.

        Raises InvalidTypeError if k is no integer and InvalidArgumentError if there is no such branch.
        """
        return self.branches.module(checked_position(k, "k", self.num_branches))

    def load_multihead(self, nets: MultiHeadNet | Sequence[MultiHeadNet]) -> None:
        """Start from trained networks.

        Parameters
        ----------
        nets
            One network, for every branch; or K, the k-th for the branch at position k. Its backbone must be built as
            the branches are; where there is a trunk it may be ``Sequential(trunk, branch)`` instead, and one network
            then sets the trunk too (with K networks the trunk stays as it is). A network sets the linear heads of the
            tasks it has, by name; other heads stay as they are.

        Raises
        ------
        InvalidArgumentError
            For another number of networks, tasks unknown here or with other class counts, or weights of other names or
            shapes; nothing is changed then.
        InvalidTypeError
            For anything but :class:`pymtg.nets.MultiHeadNet`.
        """
        each = checked_nets(nets, self.num_branches)
        states = []
        for k, net in enumerate(each):
            check_heads(net, self.layout, self.features)
            states.append(split_backbone(net, self.trunk, self.branches, k))
        if isinstance(nets, nn.Module) and self.trunk is not None and states[0][0] is not None:
            self.trunk.load_state_dict(states[0][0])
        for k, (net, (_, state)) in enumerate(zip(each, states, strict=True)):
            self.branches.load(k, state)
            if self.heads.linear is not None:
                self.heads.linear.load_net(k, net)

    def drop_branches(self, keep: Sequence[int] | Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take branches out in place; training goes on as if they had never been there.

        Gradient scaling goes by the number of branches that are left, then.

        Parameters
        ----------
        keep
            Positions of the branches that stay, in their new order.
        optimizer
            The optimizer that trains this network: its parameters and their state are cut to the branches that stay.
            Stacked parameters are new objects afterwards.

        Raises
        ------
        InvalidArgumentError
            For no branches, a branch twice, positions that are none, or an optimizer whose state of stacked parameters
            cannot be told apart by branch; nothing is changed then.
        InvalidTypeError
            For positions that are no integers.

        Notes
        -----
        State in which an optimizer has summed over the branches (size 1 in their dimension, as Adafactor's column
        factors of stacked biases) stays as it is.
        """
        kept = checked_positions(keep, "keep", self.num_branches)
        if not kept or len(set(kept)) < len(kept):
            raise InvalidArgumentError(f"keep must name at least one branch, each once; got {kept}")
        stacked = [*(self.branches.parameters() if self.batched else ()), *self.heads.stacked()]
        check_states(stacked, optimizer)
        self.branches.drop(kept, optimizer)
        self.heads.drop(kept, optimizer)
        self.branch_ids = tuple(self.branch_ids[k] for k in kept)

    def prune(self, labels: Sequence[int] | Tensor) -> GroupedNet:
        """Return a plain module with the chosen head of every task and the branches that are still used, all copied.

        Parameters
        ----------
        labels
            Per task its branch, a position among the branches that are left.

        Raises
        ------
        InvalidArgumentError
            For labels that are not one position of a branch per task.
        InvalidTypeError
            For labels that are no integers.
        """
        chosen = self._checked_labels(labels)
        used = sorted(set(chosen))
        heads = self.heads
        copied: dict[int, Any] = {}  # of all copies: what the parts share they go on sharing
        custom = {name: copy_of(heads.head(chosen[self.layout.index(name)], name), copied) for name in heads.custom}
        linear: list[nn.Linear | None] = []
        for k in used:
            tasks = [name for t, name in enumerate(self.layout) if chosen[t] == k and name not in custom]
            linear.append(heads.linear.module(k, tasks) if heads.linear is not None and tasks else None)
        pruned = GroupedNet(
            self.layout,
            [used.index(k) for k in chosen],
            [self.branches.module(k, copied) for k in used],
            linear,
            custom,
            None if self.trunk is None else copy_of(self.trunk, copied),
            [self.branch_ids[k] for k in used],
        )
        return pruned.train(self.training)

    def extra_repr(self) -> str:
        """Name the size of the problem in ``repr``."""
        together = "together" if self.batched else "one by one"
        tasks = f"{self.layout.num_tasks} tasks, {self.layout.num_logits} logits"
        return f"{self.num_branches} branches {together}, {tasks}"


def _columns(logits: Tensor, layout: TaskLayout, chosen: Sequence[int]) -> Tensor:
    """Return ``[B, C]`` of logits ``[K, B, C]``: every task's columns from its branch."""
    branch = [k for k, count in zip(chosen, layout.num_classes, strict=True) for _ in range(count)]
    at = torch.tensor(branch, device=logits.device)
    return logits.transpose(0, 1)[:, at, torch.arange(layout.num_logits, device=logits.device)]


def _check_options(layout: Any, trunk: Any, batched: Any, gradient_scaling: Any, aggregator: Any) -> None:
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    if trunk is not None and not isinstance(trunk, nn.Module):
        raise InvalidTypeError(f"trunk must be a torch.nn.Module or None; got {type(trunk).__name__}")
    if batched not in ("auto", True, False):
        raise InvalidArgumentError(f"batched must be 'auto', True or False; got {batched!r}")
    if not isinstance(gradient_scaling, bool):
        raise InvalidTypeError(f"gradient_scaling must be True or False; got {gradient_scaling!r}")
    if aggregator is not None and not callable(aggregator):
        raise InvalidTypeError(f"aggregator must be callable or None; got {type(aggregator).__name__}")
    if aggregator is not None and gradient_scaling:
        raise InvalidArgumentError("gradient_scaling must be False where an aggregator is given: it takes its place")
