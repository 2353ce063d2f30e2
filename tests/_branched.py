"""Networks with K branches for the tests, and what they are compared with."""

from __future__ import annotations

import torch
from torch import nn

from pymtg import TaskLayout
from pymtg.nets import MLP, BranchedNet, ConvNet

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 2, 1])


def unsettled(module):
    """Draw every buffer and every norm's weights at random, so that no two branches agree by their start."""
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)) and part.weight is not None:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module.double()


def mlp_branches(count, width=4, inputs=6):
    return [unsettled(MLP(inputs, (8, width))) for _ in range(count)]


def conv_branches(count):
    return [unsettled(ConvNet(2, (3, 4))) for _ in range(count)]


def with_random_heads(net):
    """Draw the linear heads, which start at zero."""
    if net.heads.linear is not None:
        nn.init.normal_(net.heads.linear.weight)
        nn.init.normal_(net.heads.linear.bias)
    return net


def net_of(branches, layout=LAYOUT, **options):
    return with_random_heads(BranchedNet(branches, len(branches), layout, **options).double())


def weighted_sum(logits, generator=None):
    """A scalar whose gradient in every logit is another random number."""
    return (logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)).sum()
