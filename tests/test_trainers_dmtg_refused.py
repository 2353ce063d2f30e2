"""DMTGTrainer: interrupts, losses that are not finite, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from _dmtg import LAYOUT, branched, fit, make, trainer
from torch import nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import TaskAssignment, mlp
from pymtg.trainers import NonFiniteLossError, NotFittedError

FITTED = ("net_", "assignment_", "model_", "groups_", "assignment_history_", "data_map_", "result_")


@pytest.mark.parametrize("stage", ["warm start", "dmtg", "fine-tuning"])
def test_interrupts_leave_nothing_half_set(stage):
    def stop(name, record):
        if name == stage:
            raise KeyboardInterrupt

    fitted = fit(warm_epochs=1, finetune_epochs=1)
    fitted.config = trainer(on_epoch_end=stop).config
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(make())
    assert torch.equal(state, torch.get_rng_state())
    for name in FITTED:
        assert not hasattr(fitted, name)
    assert repr(fitted) == f"DMTGTrainer(4 tasks, epochs={fitted.plan.epochs}, seed=0; not fitted)"
    for call in (lambda: fitted.predict_proba(make()), lambda: fitted.evaluate(make()), fitted.prune):
        with pytest.raises(NotFittedError, match=r"is set by fit: call DMTGTrainer\.fit first"):
            call()


def test_non_finite_losses_are_named():
    data = make()
    data.inputs[7] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"stage 'dmtg', epoch 1: the loss of 'a', 'b', 'c', 'd' became NaN"):
        fit(data=data)
    with pytest.raises(NonFiniteLossError, match=r"stage 'warm start', epoch 1"):
        fit(data=data, warm_epochs=1)
    with pytest.raises(NonFiniteLossError, match="stage 'dmtg', epoch 1"):
        fit(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e38))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_groups": 0}, InvalidArgumentError, "num_groups must be at least 1; got 0"),
        ({"num_groups": "auto"}, InvalidTypeError, "num_groups must be an integer; got 'auto'"),
        ({"epochs": 0}, InvalidArgumentError, "epochs must be at least 1; got 0"),
        ({"warm_epochs": -1}, InvalidArgumentError, "warm_epochs must be at least 0; got -1"),
        ({"finetune_epochs": 1.0}, InvalidTypeError, "finetune_epochs must be an integer"),
        ({"assignment_lr": 0}, InvalidArgumentError, "assignment_lr must be finite and above 0; got 0"),
        ({"assignment_lr": "slow"}, InvalidTypeError, "assignment_lr must be a number"),
        ({"assignment_warmup": 1}, InvalidArgumentError, "assignment_warmup must be a share below 1; got 1"),
        ({"entropy_weight": -1}, InvalidArgumentError, "entropy_weight must be finite and at least 0; got -1"),
        ({"entropy_weight": float("nan")}, InvalidArgumentError, "entropy_weight must be finite"),
        ({"eps": -1}, InvalidArgumentError, "eps must be finite and at least 0; got -1"),
        ({"freeze_trunk": 1}, InvalidTypeError, "freeze_trunk must be True or False; got 1"),
        ({"drop_branches": None}, InvalidTypeError, "drop_branches must be True or False"),
        ({"record": "yes"}, InvalidTypeError, "record must be True or False"),
        ({"sampling": "soft"}, InvalidArgumentError, "sampling must be one of 'gumbel'.*got 'soft'"),
        ({"sampling": "fixed"}, InvalidArgumentError, "sampling 'fixed' must come with assignment 'diagonal'"),
        ({"init": "zeros"}, InvalidArgumentError, "init must be one of 'ones'.*got 'zeros'"),
        ({"assignment": "best"}, InvalidArgumentError, "assignment must be one of 'learned'.*got 'best'"),
        ({"assignment": [0, 1]}, InvalidArgumentError, r"assignment must be one of .*got \[0, 1\]"),
        ({"assignment": TaskAssignment(3, 3)}, InvalidArgumentError, "assignment must be of 4 tasks; got one of 3"),
        ({"temperature": 0}, InvalidArgumentError, "temperature's start must lie in"),
        ({"temperature": "hot"}, InvalidTypeError, "temperature's start must be a number"),
        ({"losses": {"a": "mse"}}, InvalidArgumentError, "losses must be one of 'cross_entropy'"),
        ({"losses": {"e": "mse"}}, InvalidArgumentError, "'e'"),
        ({"lr": -1}, InvalidArgumentError, "lr must be positive"),
        ({"seed": -1}, InvalidArgumentError, "seed must be at least 0"),
        ({"monitor": "luck"}, InvalidArgumentError, "monitor must be one of"),
        ({"layout": ["a"]}, InvalidTypeError, "layout must be a TaskLayout; got list"),
        ({"net": nn.Linear(5, 4)}, InvalidTypeError, "net must be a BranchedNet, or a factory .*; got Linear"),
        ({"net": "mlp"}, InvalidTypeError, "net must be a BranchedNet, or a factory .*; got str"),
        ({"net": branched(LAYOUT.select([0]))}, InvalidArgumentError, "net must have the layout"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        trainer(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"net": lambda layout: 3}, InvalidTypeError, "net must make a BranchedNet or a MultiHeadNet; it made a int"),
        ({"net": lambda layout: nn.Linear(5, 7)}, InvalidTypeError, "it made a Linear"),
        ({"net": lambda layout: branched(LAYOUT.select([0]))}, InvalidArgumentError, "theirs differ"),
        ({"net": lambda layout: mlp(5)(LAYOUT.select([0]))}, InvalidArgumentError, "theirs differ"),
        ({"assignment": TaskAssignment(4, 2)}, InvalidArgumentError, "assignment must be to 3 branches; got one to 2"),
        ({"keep_best": True}, InvalidArgumentError, "keep_best=True needs a validation set"),
        ({"monitor": "r2"}, InvalidArgumentError, "monitor must suit the tasks"),
        ({"data": []}, InvalidArgumentError, "train must hold at least one sample"),
        ({"data": make(LAYOUT.select([0]))}, InvalidArgumentError, r"targets \[samples, 4\]"),
        ({"data": (torch.zeros(4, 5), torch.full((4, 4), 9))}, InvalidArgumentError, "9"),
    ],
)
def test_refused_by_fit(options, error, message):
    fitted = trainer(**{name: value for name, value in options.items() if name != "data"})
    with pytest.raises(error, match=message):
        fitted.fit(options.get("data", make()))
    assert not hasattr(fitted, "net_")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fitted.nonsense


def small_heads(features, classes):
    return nn.Sequential(nn.Linear(features, 3), nn.Tanh(), nn.Linear(3, classes))


def test_heads_that_are_not_linear():
    fitted = fit(branched(head={"b": small_heads}), val=make(seed=1), finetune_epochs=1)
    assert fitted.predict_proba(make()).shape == (61, 7)
    assert fitted.result_.stages[0].history[-1].val_score > 0
    with pytest.raises(InvalidArgumentError, match="record must be False where heads are not linear"):
        fit(branched(head={"b": small_heads}), record=True)
    with pytest.raises(InvalidArgumentError, match="warm_epochs must be 0 where heads are not linear"):
        fit(branched(head=small_heads), warm_epochs=1)
