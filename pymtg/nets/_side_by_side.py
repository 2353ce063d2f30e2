"""K networks of one architecture as one network whose logits stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pymtg.nets._stacked import CannotStackError, StackedBranches, named
from pymtg.nets._stacked_layers import to_maps


class SideBySide(nn.Module):
    """K networks that run as one on stacked layers: exact to rounding, and none sees another's rows or weights.

    In training mode every network gets a batch of its own, in eval mode all get the same.

    Parameters
    ----------
    networks
        K modules from ``[B, ...]`` to logits ``[B, C]``, which are copied.

    Raises
    ------
    CannotStackError
        As :class:`StackedBranches`, and for dropout: its masks would be drawn in another order than one by one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        for path, layer in networks[0].named_modules():
            if isinstance(layer, _DropoutNd) and layer.p > 0:
                raise CannotStackError(f"{named(path, layer)} draws masks, each network its own")
        self.networks = StackedBranches(networks, fanned=True)
        self.num_networks = len(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[B, K * C]`` of inputs ``[K, B, ...]`` in training mode, of ``[B, ...]`` in eval mode."""
        own = inputs if self.training else inputs.expand(self.num_networks, *inputs.shape)
        return to_maps(self.networks(own))

    def module(self, k: int) -> nn.Module:
        """Return network k with copies of its weights and buffers."""
        return self.networks.module(k)

    def state_of(self, k: int) -> dict[str, Tensor]:
        """Return copies of network k's weights and buffers, as :meth:`load_state_of` takes them."""
        return {name: stack[k].clone() for name, stack in self.state_dict().items()}

    def load_state_of(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Set network k's weights and buffers."""
        with torch.no_grad():
            for name, stack in self.state_dict().items():
                stack[k].copy_(state[name])

    def places(self) -> dict[str, nn.Parameter]:
        """Return by a parameter's name in the networks the stack ``[K, ...]`` that holds it."""
        return {
            f"{layer.path}.{name}" if layer.path else name: stack
            for layer in self.networks.stacked()
            for name, stack in layer._parameters.items()
            if stack is not None
        }

    def finite(self) -> list[bool]:
        """Return per network whether its weights, and so their sum, are finite."""
        learned = (stack.detach() for stack in self.parameters() if stack.requires_grad)
        sums = torch.stack([stack.flatten(1).sum(1).float() for stack in learned]).sum(0)
        found: list[bool] = sums.isfinite().tolist()
        return found
