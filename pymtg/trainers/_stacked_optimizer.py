"""One optimizer for K networks that run as one, equal to K optimizers of the caller's kind."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import optim

from pymtg.nets._side_by_side import SideBySide
from pymtg.nets._stacked import CannotStackError
from pymtg.trainers.config import TrainConfig

__all__ = ["stacked_optimizer"]

# They treat every weight alone, so that a stack of parameters moves as the parameters would. Others go by whole
# parameters (Adafactor, Muon) or by all of them (LBFGS); of a subclass nothing is known.
_ELEMENTWISE: tuple[type[optim.Optimizer], ...] = (
    *(optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop, optim.Rprop, optim.ASGD),
)


def stacked_optimizer(network: SideBySide, config: TrainConfig) -> torch.optim.Optimizer:
    """Return an optimizer of the stacked parameters.

    The caller's factory sees one of the networks as it is, so that what it goes by, names of groups or dimensions of
    parameters, is what it would see one by one; the stacks take the parameters' places in its groups.

    Raises CannotStackError for an optimizer that is not known to treat every weight alone.
    """
    if config.optimizer is None:
        return config.build_optimizer(network)
    plain = network.module(0)
    alone = config.build_optimizer(plain)
    kind: Any = type(alone)
    if kind not in _ELEMENTWISE:
        raise CannotStackError(f"the optimizer {kind.__name__} is not known to treat every weight alone")
    if alone._optimizer_step_pre_hooks or alone._optimizer_step_post_hooks:
        raise CannotStackError(f"the optimizer {kind.__name__} has hooks")
    stacks = network.places()
    place = {parameter: stacks[name] for name, parameter in plain.named_parameters()}
    groups = [{**group, "params": [place[p] for p in group["params"]]} for group in alone.param_groups]
    taken = inspect.signature(kind).parameters
    return kind(groups, **{name: value for name, value in alone.defaults.items() if name in taken})  # type: ignore[no-any-return]
