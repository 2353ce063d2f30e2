"""K copies of one layer as one layer whose parameters are stacked, ``[K, ...]``.

Values between such layers have one of three forms: *shared*, ``[B, C, ...]``, the same for every branch; *rows*,
``[K, B, C, ...]``; *maps*, ``[B, K * C, ...]``, the branches side by side in the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pymtg._checks import check_floating

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def to_rows(values: Tensor, branches: int) -> Tensor:
    """From maps to rows: a view."""
    return values.view(len(values), branches, values.shape[1] // branches, *values.shape[2:]).transpose(0, 1)


def to_maps(values: Tensor) -> Tensor:
    """From rows to maps: a copy."""
    return values.transpose(0, 1).flatten(1, 2)


class StackedLayer(nn.Module):
    """Holds the parameters and buffers of K layers, stacked under their own names.

    Parameters
    ----------
    path
        Where the layer stands in a branch.
    layers
        The K layers.
    """

    def __init__(self, path: str, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.path = path
        self.training = layers[0].training  # a branch may hold norms that stand still
        for name in layers[0]._parameters:
            each = [layer._parameters[name] for layer in layers]
            self.register_parameter(name, None if each[0] is None else self._stack(name, each))
        for name in layers[0]._buffers:
            buffers = [layer._buffers[name] for layer in layers]
            present = [buffer for buffer in buffers if buffer is not None]
            self.register_buffer(name, torch.stack(present) if present else None)

    def _stack(self, name: str, each: Sequence[nn.Parameter | None]) -> nn.Parameter:
        tensors = [self.turned(name, p.detach()) for p in each if p is not None]
        return nn.Parameter(torch.stack(tensors), each[0] is not None and each[0].requires_grad)

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """From a layer's tensor to the order of dimensions that the stack keeps: a view."""
        return tensor

    def turned_back(self, name: str, tensor: Tensor) -> Tensor:
        """From the stack's order of dimensions to a layer's: a view."""
        return tensor

    def copy_into(self, k: int, layer: nn.Module) -> None:
        """Give a plain layer copies of the parameters and buffers of branch k."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                own = self.turned_back(name, parameter.detach()[k]).clone(memory_format=torch.contiguous_format)
                layer._parameters[name] = nn.Parameter(own, parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                layer._buffers[name] = buffer[k].clone()

    def load(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Set branch k's parameters and buffers from the state dict of a branch."""
        with torch.no_grad():
            for name, stacked in (*self._parameters.items(), *self._buffers.items()):
                if stacked is not None:
                    stacked[k].copy_(self.turned(name, state[f"{self.path}.{name}" if self.path else name]))


class StackedLinear(StackedLayer):
    """Fully connected layers; shared or rows in, rows out."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, path: str, layers: Sequence[nn.Module], shared: bool) -> None:
        super().__init__(path, layers)
        self.shared = shared

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """Keep weights as ``[in, out]``."""
        return tensor.T if name == "weight" else tensor

    turned_back = turned

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[K, B, ..., out]`` of ``[B, ..., in]`` or ``[K, B, ..., in]``."""
        check_floating(values, "inputs of a linear layer")
        if self.shared:
            values = values.expand(len(self.weight), *values.shape)
        flat = values.flatten(1, -2) if values.ndim > 3 else values
        if self.bias is None:
            product = torch.bmm(flat, self.weight)
        else:
            product = torch.baddbmm(self.bias.unsqueeze(1), flat, self.weight)
        return product.view(*values.shape[:-1], -1) if values.ndim > 3 else product


class StackedConv(StackedLayer):
    """Convolutions, the branches' filters side by side; shared or maps in, maps out."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, path: str, layers: Sequence[nn.Module], shared: bool) -> None:
        super().__init__(path, layers)
        first: Any = layers[0]
        self.shared = shared
        self.kernel = first.kernel_size
        self.groups = first.groups
        self.options = {"stride": first.stride, "padding": first.padding, "dilation": first.dilation}

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """Keep filters with their input channels last, as the CPU's grouped convolutions want them, and flat."""
        return tensor.movedim(1, -1).flatten(1) if name == "weight" else tensor

    def turned_back(self, name: str, tensor: Tensor) -> Tensor:
        """Undo :meth:`turned`: a view."""
        return tensor.view(len(tensor), *self.kernel, -1).movedim(-1, 1) if name == "weight" else tensor

    def forward(self, values: Tensor) -> Tensor:
        """Return maps; on a CPU in channels_last, in which grouped convolutions are faster."""
        weight = self.turned_back("weight", self.weight.flatten(0, 1))
        if values.device.type != "cpu":
            weight = weight.contiguous()
        elif values.ndim == 4:
            values = values.to(memory_format=torch.channels_last)
        groups = self.groups if self.shared else self.groups * len(self.weight)
        return _CONVOLUTIONS[weight.ndim - 2](values, weight, flattened(self.bias), groups=groups, **self.options)


class StackedBatchNorm(StackedLayer):
    """Batch norms, every branch with its own statistics; rows or maps in and out."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, path: str, layers: Sequence[nn.Module], rows: bool) -> None:
        super().__init__(path, layers)
        first: Any = layers[0]
        self.rows = rows
        self.branches = len(layers)
        self.eps, self.momentum = first.eps, first.momentum

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised values; in training the running statistics move, as those of plain layers do."""
        maps = to_maps(values) if self.rows else values
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalised = F.batch_norm(
            maps,
            flattened(self.running_mean),
            flattened(self.running_var),
            flattened(self.weight),
            flattened(self.bias),
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
        )
        return to_rows(normalised, self.branches) if self.rows else normalised


class StackedGroupNorm(StackedLayer):
    """Group norms; maps in and out."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, path: str, layers: Sequence[nn.Module]) -> None:
        super().__init__(path, layers)
        first: Any = layers[0]
        self.branches = len(layers)
        self.groups, self.eps = first.num_groups, first.eps

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised maps."""
        groups = self.groups * self.branches
        return F.group_norm(values, groups, flattened(self.weight), flattened(self.bias), self.eps)


class StackedLayerNorm(StackedLayer):
    """Layer norms; rows in and out."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, path: str, layers: Sequence[nn.Module]) -> None:
        super().__init__(path, layers)
        first: Any = layers[0]
        self.shape, self.eps = first.normalized_shape, first.eps

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised rows."""
        normalised = F.layer_norm(values, self.shape, eps=self.eps)
        middle = [1] * (values.ndim - 1 - len(self.shape))
        if self.weight is not None:
            normalised = normalised * self.weight.view(-1, *middle, *self.shape)
        return normalised if self.bias is None else normalised + self.bias.view(-1, *middle, *self.shape)


class Reshape(nn.Module):
    """From one form to another, or flat: `step` names one of the functions below."""

    def __init__(self, step: str, branches: int) -> None:
        super().__init__()
        self.step = step
        self.branches = branches

    def forward(self, values: Tensor) -> Tensor:
        """Return the values in their new form."""
        if self.step == "spread":
            return values.expand(self.branches, *values.shape)
        if self.step == "rows to maps":
            return to_maps(values)
        if self.step == "maps to rows":
            return to_rows(values, self.branches)
        if self.step == "rows to batch":
            return values.flatten(0, 1)
        if self.step == "batch to rows":
            return values.view(self.branches, len(values) // self.branches, *values.shape[1:])
        if self.step == "flatten rows":
            return values.flatten(2)
        return to_rows(values.flatten(1), self.branches)  # "flatten maps"

    def extra_repr(self) -> str:
        """Name the step in ``repr``."""
        return self.step


def flattened(stacked: Tensor | None) -> Tensor | None:
    """Return ``[K, C]`` as ``[K * C]``, a view."""
    return None if stacked is None else stacked.view(-1)
