"""K branches of one architecture run as one: a converter from plain modules to stacked layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pymtg.nets._slicing import slice_stacks
from pymtg.nets._stacked_layers import (
    Reshape,
    StackedBatchNorm,
    StackedConv,
    StackedGroupNorm,
    StackedLayer,
    StackedLayerNorm,
    StackedLinear,
)
from pymtg.nets._tuning import tuned
from pymtg.nets.backbones import MLP, ConvNet
from pymtg.nets.multihead import MultiHeadNet

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.AlphaDropout)
_CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLS: dict[type[nn.Module], int] = {  # how many dimensions they pool over
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 3),
}
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign),
)


class CannotStackError(Exception):
    """These branches cannot run as one; the message says why."""


class StackedBranches(nn.Module):
    """K branches of one architecture whose layers run together.

    Every parameter and buffer is a stack, ``[K, ...]``. Exact to rounding against the branches one by one; dropout
    draws every branch's masks, in another order.

    Parameters
    ----------
    modules
        K branches, which are copied.
    fanned
        Whether the input comes as K copies ``[K, B, ...]`` (whose gradients are told apart) or as one ``[B, ...]``.

    Raises
    ------
    CannotStackError
        For branches that differ, share weights, or hold a layer that has no stacked form.
    """

    def __init__(self, modules: Sequence[nn.Module], fanned: bool = False) -> None:
        super().__init__()
        _check_alike(modules)
        converter = _Converter(len(modules), "rows" if fanned else "shared")
        converter.add("", modules)
        converter.turn("rows")
        self.layers = nn.Sequential(_named(tuned(converter.layers)))
        self.fanned = fanned
        # In a tuple, so that it is no submodule: only its structure counts.
        self._template = (copy.deepcopy(modules[0]).to("meta"),)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features ``[K, B, ...]``."""
        first: Any = self._template[0]
        if type(first) in (MLP, ConvNet):
            first.check(inputs[0] if self.fanned else inputs)
        features: Tensor = self.layers(inputs)
        return features

    def stacked(self) -> Iterator[StackedLayer]:
        """Yield the layers that hold parameters or buffers of the branches."""
        yield from (layer for layer in self.layers if isinstance(layer, StackedLayer))

    def module(self, k: int, copied: dict[int, Any] | None = None) -> nn.Module:
        """Return a plain module with copies of branch k's weights and buffers: stacked branches share none."""
        branch = copy.deepcopy(self._template[0])
        for layer in self.stacked():
            layer.copy_into(k, branch.get_submodule(layer.path))
        return branch.train(self.training)

    def load(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Set the weights and buffers of branch k."""
        for layer in self.stacked():
            layer.load(k, state)

    def drop(self, keep: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the branches at these positions, in the parameters and in an optimizer's state of them."""
        slice_stacks(self, keep, optimizer)


class _Converter:
    """Takes K modules of one architecture apart, layer by layer; keeps track of the form of the values."""

    def __init__(self, branches: int, form: str) -> None:
        self.branches = branches
        self.form = form
        self.dims = 0  # of maps that a convolution returned, without batch and channels
        self.layers: list[nn.Module] = []

    def add(self, path: str, modules: Sequence[nn.Module]) -> None:
        """Append what K modules at one place do."""
        first = modules[0]
        kind = type(first)
        if any(has_hooks(module) for module in modules):
            raise CannotStackError(f"{named(path, first)} has hooks")
        if kind in (MLP, ConvNet, MultiHeadNet, nn.Sequential):
            if kind is MLP:
                self._flatten(path, nn.Flatten())
            for name in first._modules:  # a module that stands there twice is called twice
                self.add(f"{path}.{name}" if path else name, [module.get_submodule(name) for module in modules])
            return
        rule = _RULES.get(kind)
        if rule is None:
            raise CannotStackError(f"{named(path, first)} has no stacked form")
        rule(self, path, modules)

    def turn(self, form: str) -> None:
        """Bring the values into another form."""
        if self.form == "shared" and form != "shared":
            self._append(Reshape("spread", self.branches), "rows")
        if self.form != form:
            self._append(Reshape(f"{self.form} to {form}", self.branches), form)
            self.dims = 0

    def _append(self, layer: nn.Module, form: str) -> None:
        self.layers.append(layer)
        self.form = form

    def _linear(self, path: str, modules: Sequence[nn.Module]) -> None:
        if self.form == "maps":
            raise CannotStackError(f"{named(path, modules[0])} acts on the last dimension of maps")
        self._append(StackedLinear(path, modules, self.form == "shared"), "rows")

    def _convolution(self, path: str, modules: Sequence[nn.Module]) -> None:
        first: Any = modules[0]
        if first.padding_mode != "zeros":
            raise CannotStackError(f"{named(path, first)} pads with other than zeros")
        shared = self.form == "shared" and first.groups == 1
        if not shared:
            self.turn("maps")
        self._append(StackedConv(path, modules, shared), "maps")
        self.dims = len(first.kernel_size)

    def _batch_norm(self, path: str, modules: Sequence[nn.Module]) -> None:
        first: Any = modules[0]
        if first.momentum is None:
            raise CannotStackError(f"{named(path, first)} has no momentum")
        if self.form == "shared":
            self.turn("rows")
        self._append(StackedBatchNorm(path, modules, self.form == "rows"), self.form)

    def _group_norm(self, path: str, modules: Sequence[nn.Module]) -> None:
        self.turn("maps")
        self._append(StackedGroupNorm(path, modules), "maps")

    def _layer_norm(self, path: str, modules: Sequence[nn.Module]) -> None:
        self.turn("rows")
        self._append(StackedLayerNorm(path, modules), "rows")

    def _flatten_all(self, path: str, modules: Sequence[nn.Module]) -> None:
        self._flatten(path, modules[0])

    def _flatten(self, path: str, first: Any) -> None:
        if (first.start_dim, first.end_dim) != (1, -1):
            raise CannotStackError(f"{named(path, first)} flattens other than everything behind the batch")
        if self.form == "shared":
            self._append(nn.Flatten(), "shared")
        else:
            self._append(Reshape(f"flatten {self.form}", self.branches), "rows")

    def _elementwise(self, path: str, modules: Sequence[nn.Module]) -> None:
        layer: Any = copy.deepcopy(modules[0])
        if hasattr(layer, "inplace"):
            layer.inplace = False  # the values may be those of all branches at once; `tuned` knows where they are not
        self._append(layer, self.form)

    def _dropout(self, path: str, modules: Sequence[nn.Module]) -> None:
        if self.form == "shared":
            self.turn("rows")  # every branch has masks of its own
        layer: Any = copy.deepcopy(modules[0])
        layer.inplace = False
        self._append(layer, self.form)

    def _on_maps(self, path: str, modules: Sequence[nn.Module]) -> None:
        self.turn("maps")
        self._append(copy.deepcopy(modules[0]), "maps")

    def _pool(self, path: str, modules: Sequence[nn.Module]) -> None:
        first: Any = modules[0]
        if getattr(first, "return_indices", False):
            raise CannotStackError(f"{named(path, first)} returns indices")
        dims = _POOLS[type(first)]
        if self.form == "rows" and dims == 1:  # takes [B, features], too
            raise CannotStackError(f"{named(path, first)} may pool along the features")
        if self.form == "shared" or (self.form == "maps" and self.dims == dims):
            self._append(copy.deepcopy(first), self.form)
            return
        # Pools take values without channels too, [B, H, W]: side by side there a window would reach into a neighbour.
        self.turn("rows")
        for layer in (Reshape("rows to batch", self.branches), copy.deepcopy(first)):
            self._append(layer, "batch")
        self._append(Reshape("batch to rows", self.branches), "rows")


_Rule = Callable[[_Converter, str, Sequence[nn.Module]], None]
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _Converter._linear,
    nn.GroupNorm: _Converter._group_norm,
    nn.LayerNorm: _Converter._layer_norm,
    nn.Flatten: _Converter._flatten_all,
    **dict.fromkeys(_CONVOLUTIONS, _Converter._convolution),
    **dict.fromkeys(_BATCH_NORMS, _Converter._batch_norm),
    **dict.fromkeys(_DROPOUTS, _Converter._dropout),
    **dict.fromkeys(_CHANNEL_DROPOUTS, _Converter._on_maps),
    **dict.fromkeys(_POOLS, _Converter._pool),
    **dict.fromkeys(_ELEMENTWISE, _Converter._elementwise),
}


def named(path: str, module: nn.Module) -> str:
    """Name a layer for a message."""
    return f"layer {path!r} ({type(module).__name__})" if path else type(module).__name__


def _named(layers: Sequence[nn.Module]) -> OrderedDict[str, nn.Module]:
    """Name layers after their places in a branch, so that a state dict does not depend on the steps between them."""
    result: OrderedDict[str, nn.Module] = OrderedDict()
    for i, layer in enumerate(layers):
        name = f"step{i}" if not isinstance(layer, StackedLayer) else layer.path.replace(".", "_") or "layer"
        while name in result:
            name += "_"
        result[name] = layer
    return result


def has_hooks(module: nn.Module) -> bool:
    """Tell whether something hooks into the calls of this module or its parameters' gradients, or replaces them."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    own = [p for p in module._parameters.values() if p is not None]
    tensors = (getattr(p, name, None) for p in own for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))
    return any(bool(each) for each in (*hooks, *tensors)) or "forward" in vars(module)


def _check_alike(modules: Sequence[nn.Module]) -> None:
    first = modules[0]
    if any(is_lazy(p) for module in modules for p in module.parameters()):
        raise CannotStackError("their shapes are not known before the first call")
    every = [id(p) for module in modules for _, p in module.named_parameters(remove_duplicate=False)]
    every += [id(b) for module in modules for _, b in module.named_buffers(remove_duplicate=False)]
    if len(set(every)) < len(every):
        raise CannotStackError("parameters or buffers are shared")
    for k, module in enumerate(modules[1:], 1):
        if _settings(module) != _settings(first):
            raise CannotStackError(f"branch {k} is built otherwise than branch 0")
        if _tensors(module) != _tensors(first):
            raise CannotStackError(f"branch {k} has other parameters than branch 0 (shape, dtype or frozen)")


def _settings(module: nn.Module) -> list[tuple[str, type[nn.Module], dict[str, str]]]:
    """Return the layers' types and options, train or eval mode among them: a module's ``repr`` leaves some out."""
    plain = (bool, int, float, str, tuple, list, type(None))

    def options(layer: nn.Module) -> dict[str, str]:
        return {k: repr(v) for k, v in vars(layer).items() if isinstance(v, plain) and not k.startswith("_")}

    return [(name, type(layer), options(layer)) for name, layer in module.named_modules()]


def _tensors(module: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, torch.device, bool]]:
    pairs = [*module.named_parameters(), *module.named_buffers()]
    return [(name, t.shape, t.dtype, t.device, t.requires_grad) for name, t in pairs]
