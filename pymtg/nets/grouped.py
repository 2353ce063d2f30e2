"""What is left of a branched network when every task has chosen its branch: a plain module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._copying import copy_of
from pymtg.nets._positions import checked_positions
from pymtg.nets._separate import own_copy
from pymtg.nets.multihead import MultiHeadNet
from pymtg.tasks import TaskLayout

__all__ = ["GroupedNet"]


class GroupedNet(nn.Module):
    """Branches, each with the heads of its own tasks; made by :meth:`pymtg.nets.BranchedNet.prune`.

    Or from networks that were trained apart, by :meth:`from_networks`.

    Plain modules only: it pickles, deep-copies and goes through ``torch.export``; its ``state_dict`` fits safetensors
    (``safetensors.torch.save_model`` where weights are shared), and holds the labels: ``load_state_dict`` raises
    InvalidArgumentError for the weights of other groups.

    Parameters
    ----------
    layout
        The tasks.
    labels
        Per task the position of its branch in `branches`.
    branches
        Modules from ``[B, ...]`` to features.
    linear
        Per branch one linear layer over its tasks with linear heads, in the layout's order; None where it has none.
    custom
        The other tasks' heads, by task name.
    trunk
        A module that all branches share, or None.

    Attributes
    ----------
    layout, labels
        As given.
    branch_ids
        Per branch its number in the network that it comes from.
    """

    columns: Tensor | None

    def __init__(
        self,
        layout: TaskLayout,
        labels: Sequence[int],
        branches: Sequence[nn.Module],
        linear: Sequence[nn.Linear | None],
        custom: Mapping[str, nn.Module],
        trunk: nn.Module | None = None,
        branch_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.labels = tuple(int(label) for label in labels)
        self.branch_ids = tuple(range(len(branches)) if branch_ids is None else branch_ids)
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.linear = nn.ModuleList(nn.Identity() if layer is None else layer for layer in linear)
        self.custom_names = tuple(custom)
        self.custom = nn.ModuleList(custom.values())
        self._linear_tasks = tuple(
            tuple(t for t, name in enumerate(layout) if self.labels[t] == k and name not in custom)
            for k in range(len(branches))
        )
        order = [c for own in self._linear_tasks for t in own for c in range(layout.num_logits)[layout.columns(t)]]
        columns = None if custom or order == sorted(order) else torch.tensor(order).argsort()
        self.register_buffer("columns", columns, persistent=False)

    @classmethod
    def from_networks(cls, networks: Sequence[nn.Module], labels: Sequence[int] | Tensor) -> GroupedNet:
        """Put networks for the same tasks together, each reduced to the heads of the tasks that chose it, all copied.

        Parameters
        ----------
        networks
            :class:`pymtg.nets.MultiHeadNet` of one layout. Those that no task has chosen are left out.
        labels
            Per task the position of its network.

        Returns
        -------
        A network in eval mode whose logits of a task are those of the task's network.

        Raises
        ------
        InvalidTypeError
            For networks of another kind, labels that are no integers.
        InvalidArgumentError
            For no networks, other layouts, labels that are not one position of a network per task.
        """
        nets = _checked_networks(networks)
        layout = nets[0].layout
        chosen = checked_positions(labels, "labels", len(nets))
        if len(chosen) != layout.num_tasks:
            raise InvalidArgumentError(f"labels must be one per task ({layout.num_tasks}); got {len(chosen)}")
        used = sorted(set(chosen))
        copied: dict[int, Any] = {}  # of all copies: what the networks share they go on sharing
        heads = [_head(nets[k], [t for t, own in enumerate(chosen) if own == k]) for k in used]
        branches = [copy_of(nets[k].backbone, copied) for k in used]
        return cls(layout, [used.index(k) for k in chosen], branches, heads, {}, branch_ids=used).eval()

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Return logits ``[B, C]``, or ``{task: outputs}`` if some head returns other than ``[B, C_t]``."""
        shared = inputs if self.trunk is None else self.trunk(inputs)
        features = [branch(own_copy(branch, shared)) for branch in self.branches]
        if self.custom_names:
            return self._by_task(features)
        logits = torch.cat([layer(own) for layer, own in zip(self.linear, features, strict=True)], 1)
        return logits if self.columns is None else logits[:, self.columns]

    def get_extra_state(self) -> Tensor:
        """Return for ``state_dict`` what the weights do not tell: the labels, int64 ``[T]``."""
        return torch.tensor(self.labels, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Raise InvalidArgumentError unless the labels are those of this network, before any weight is loaded."""
        labels = tuple(state.tolist()) if isinstance(state, Tensor) and state.ndim == 1 else state
        if labels != self.labels:
            raise InvalidArgumentError(f"state must be of the labels {self.labels}, as here; got one of {labels}")

    def _by_task(self, features: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        outputs: dict[int, Tensor] = {}
        for name, head in zip(self.custom_names, self.custom, strict=True):
            t = self.layout.index(name)
            outputs[t] = head(features[self.labels[t]])
        for tasks, layer, own in zip(self._linear_tasks, self.linear, features, strict=True):
            if tasks:
                parts = layer(own).split([self.layout.num_classes[t] for t in tasks], 1)
                outputs.update(zip(tasks, parts, strict=True))
        ordered = [outputs[t] for t in range(self.layout.num_tasks)]
        if all(part.ndim == 2 for part in ordered):
            return torch.cat(ordered, 1)
        return dict(zip(self.layout, ordered, strict=True))

    def extra_repr(self) -> str:
        """Name the size of the problem in ``repr``."""
        return f"{self.layout.num_tasks} tasks on {len(self.branches)} branches"


def _checked_networks(networks: Any) -> list[MultiHeadNet]:
    nets = list(networks)
    for k, net in enumerate(nets):
        # Not a subclass with a forward of its own, nor one whose head was replaced: their logits may be other ones.
        if not isinstance(net, MultiHeadNet) or type(net).forward is not MultiHeadNet.forward:
            raise InvalidTypeError(f"networks[{k}] must be a pymtg.nets.MultiHeadNet; got {type(net).__name__}")
        if not isinstance(net.head, nn.Linear) or net.head.bias is None:
            raise InvalidTypeError(f"networks[{k}] must have a linear head with a bias; got {net.head!r}")
        if net.layout != nets[0].layout:
            raise InvalidArgumentError(f"networks must have one layout; that of networks[{k}] is not the first one's")
    if not nets:
        raise InvalidArgumentError("networks must be at least one; got none")
    return nets


def _head(net: MultiHeadNet, tasks: Sequence[int]) -> nn.Linear:
    """Return a linear layer of the rows of a network's head that are some tasks'."""
    rows = [row for t in tasks for row in range(net.layout.num_logits)[net.layout.columns(t)]]
    head = net.head
    layer = nn.Linear(head.in_features, len(rows), device="meta")
    layer.weight = nn.Parameter(head.weight.detach()[rows], head.weight.requires_grad)
    layer.bias = nn.Parameter(head.bias.detach()[rows], head.bias.requires_grad)
    return layer
