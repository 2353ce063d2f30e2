"""One step of DMTG behind fixed features, in the forms that pymtg's is measured against.

Features are ``[K, B, D]``, weights ``[K, D, C]``, biases ``[K, C]``, targets ``[B, T]`` with all labels there. A call
runs the step forward and backward and returns the total; ``gradients()`` gives what it left, in these shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pymtg import TaskLayout

TEMPERATURE = 2.5


def head_loss(logits, targets):
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits.dtype))
    return F.cross_entropy(logits, targets)


class Step:
    """What all forms share: leaves, and the assignment drawn with given noise."""

    def __init__(self, layout: TaskLayout, features, weight, bias, targets, noise) -> None:
        self.layout, self.targets, self.noise = layout, targets, noise
        self.features = features.clone().requires_grad_()
        self.theta = torch.ones_like(noise).requires_grad_()

    def assignment(self):
        return F.softmax((self.theta + self.noise) / TEMPERATURE, 1)

    def __call__(self):
        for leaf in self.leaves():
            leaf.grad = None
        total = self.forward()
        total.backward()
        return total

    def columns(self, t: int) -> slice:
        return slice(self.layout.offsets[t], self.layout.offsets[t + 1])


class ReleasedHeads(Step):
    """As DMTG's released training code: a module a head, then a criterion call a head, each times its Z."""

    def __init__(self, layout, features, weight, bias, targets, noise) -> None:
        super().__init__(layout, features, weight, bias, targets, noise)
        self.heads = nn.ModuleDict()
        for k in range(len(features)):
            heads = {}
            for t, name in enumerate(layout.names):
                heads[name] = nn.Linear(features.shape[2], layout.num_classes[t])
                heads[name].weight.data.copy_(weight[k, :, self.columns(t)].T)
                heads[name].bias.data.copy_(bias[k, self.columns(t)])
            self.heads[f"branch{k}"] = nn.ModuleDict(heads)
        self.labels = {name: targets[:, t].contiguous() for t, name in enumerate(layout.names)}

    def leaves(self):
        return [self.features, self.theta, *self.heads.parameters()]

    def forward(self):
        outputs = {}
        for k, (branch, heads) in enumerate(self.heads.items()):
            outputs[branch] = {name: head(self.features[k]) for name, head in heads.items()}
        assignment = self.assignment()
        total = 0.0
        for t, name in enumerate(self.layout.names):
            for k, branch in enumerate(self.heads):
                total = total + head_loss(outputs[branch][name], self.labels[name]) * assignment[t, k]
        return total

    def gradients(self):
        weight = [torch.cat([head.weight.grad for head in heads.values()]).T for heads in self.heads.values()]
        bias = [torch.cat([head.bias.grad for head in heads.values()]) for heads in self.heads.values()]
        return self.features.grad, torch.stack(weight), torch.stack(bias), self.theta.grad


class BatchedHeads(Step):
    """All heads as one batched product; their losses one after the other, unless a loss of all of them is given."""

    def __init__(self, layout, features, weight, bias, targets, noise, loss=None) -> None:
        super().__init__(layout, features, weight, bias, targets, noise)
        self.weight, self.bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        self.loss = loss or self.one_by_one

    def leaves(self):
        return [self.features, self.theta, self.weight, self.bias]

    def forward(self):
        logits = torch.baddbmm(self.bias[:, None], self.features, self.weight)
        return self.loss(logits, self.targets, self.assignment())

    def one_by_one(self, logits, targets, assignment):
        total = 0.0
        for t in range(self.layout.num_tasks):
            for k in range(len(logits)):
                total = total + head_loss(logits[k, :, self.columns(t)], targets[:, t]) * assignment[t, k]
        return total

    def gradients(self):
        return self.features.grad, self.weight.grad, self.bias.grad, self.theta.grad


class MatrixProducts(Step):
    """The three batched products of the heads alone: forward, to the features, to the weights."""

    def __init__(self, layout, features, weight, bias, targets, noise) -> None:
        self.features, self.weight = features, weight
        self.upstream = torch.randn(len(features), features.shape[1], layout.num_logits)

    def __call__(self):
        logits = torch.bmm(self.features, self.weight)
        to_features = torch.bmm(self.upstream, self.weight.mT)
        to_weight = torch.bmm(self.features.mT, self.upstream)
        return logits, to_features, to_weight
