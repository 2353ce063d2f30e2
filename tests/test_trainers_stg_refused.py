"""STGTrainer: interrupts, losses that are not finite, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from _stg import FAST, LAYOUT, fit, make
from torch import nn

from pymtg import STGTrainer
from pymtg.errors import InvalidArgumentError, InvalidTypeError, PymtgError
from pymtg.nets import mlp
from pymtg.trainers import NonFiniteLossError, NotFittedError


def test_interrupts_leave_nothing_half_set():
    def stop(stage, record):
        if stage == "group 1":
            raise KeyboardInterrupt

    trainer = fit()
    trainer.config = STGTrainer(mlp(5, (8,)), LAYOUT, on_epoch_end=stop, **FAST).config
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(make())
    assert torch.equal(state, torch.get_rng_state())
    for name in ("joint_model_", "models_", "groups_", "data_map_", "result_"):
        assert not hasattr(trainer, name)
    with pytest.raises(NotFittedError, match="groups_ is set by fit"):
        trainer.predict_proba(make())
    with pytest.raises(NotFittedError):
        trainer.evaluate(make())


def test_non_finite_losses_are_named():
    samples = [(x, y) for x, y in (make()[i] for i in range(61))]
    samples[7] = (torch.full((5,), torch.nan), samples[7][1])
    with pytest.raises(NonFiniteLossError, match=r"stage 'joint', epoch 1: the loss of 'a', 'b', 'c', 'd' became NaN"):
        fit(data=samples)

    def huge(parameters):
        return torch.optim.SGD(parameters, lr=1e38)

    with pytest.raises(NonFiniteLossError, match="stage 'joint', epoch 1"):
        fit(optimizer=huge)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_groups": 5}, InvalidArgumentError, r"num_groups must be at most the number of tasks \(4\).*got 5"),
        ({"num_groups": 0}, InvalidArgumentError, "num_groups must be at least 1; got 0"),
        ({"num_groups": 2.0}, InvalidTypeError, "num_groups must be an integer; got 2.0"),
        ({"num_groups": "many"}, InvalidTypeError, "num_groups must be an integer; got 'many'"),
        ({"epochs": 0}, InvalidArgumentError, "epochs must be at least 1; got 0"),
        ({"epochs": True}, InvalidTypeError, "epochs must be an integer; got True"),
        ({"specialised_epochs": 0}, InvalidArgumentError, "specialised_epochs must be at least 1; got 0"),
        ({"snapshot_epochs": [2, 5]}, InvalidArgumentError, r"snapshot_epochs must not go beyond epochs \(4\); got 5"),
        ({"snapshot_epochs": [0]}, InvalidArgumentError, "snapshot_epochs must be at least 1; got 0"),
        ({"snapshot_epochs": []}, InvalidArgumentError, "snapshot_epochs must name at least one"),
        ({"snapshot_epochs": [2, 2]}, InvalidArgumentError, "snapshot_epochs must not repeat"),
        ({"snapshot_epochs": 3}, InvalidTypeError, "snapshot_epochs must be a sequence"),
        ({"init": "warm"}, InvalidArgumentError, "init must be one of 'fresh', 'joint'; got 'warm'"),
        ({"lr": -1}, InvalidArgumentError, "lr must be positive and finite; got -1"),
        ({"lr": "fast"}, InvalidTypeError, "lr must be a number; got 'fast'"),
        ({"batch_size": 0}, InvalidArgumentError, "batch_size must be at least 1; got 0"),
        ({"optimizer": "adam"}, InvalidTypeError, "optimizer must be callable"),
        ({"fuzzifier": 1.0}, InvalidArgumentError, "fuzzifier must be above 1 and finite; got 1.0"),
        ({"fuzzifier": "soft"}, InvalidTypeError, "fuzzifier must be a number"),
        ({"specialise": "apart"}, InvalidArgumentError, "specialise must be one of 'auto', 'together'.*got 'apart'"),
        ({"mode": "dbscan"}, InvalidArgumentError, "mode must be one of 'kmeans-fuzzified'"),
        ({"seed": -1}, InvalidArgumentError, "seed must be at least 0; got -1"),
        ({"device": "abacus"}, InvalidArgumentError, "device must name a torch device; got 'abacus'"),
        ({"amp": "float8"}, InvalidArgumentError, "amp must be one of 'bfloat16', 'float16'; got 'float8'"),
        ({"amp": "float16"}, InvalidArgumentError, "amp='float16' needs a CUDA device"),
        ({"monitor": "luck"}, InvalidArgumentError, "monitor must be one of .*got 'luck'"),
        ({"missing": 1}, InvalidTypeError, "missing must be True, False or None; got 1"),
        ({"num_workers": -1}, InvalidArgumentError, "num_workers must be at least 0; got -1"),
        ({"num_threads": 0}, InvalidArgumentError, "num_threads must be at least 1; got 0"),
        ({"n_init": 0}, InvalidArgumentError, "n_init must be at least 1; got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        STGTrainer(mlp(5, (8,)), LAYOUT, **{**FAST, **options})


def test_auto_needs_tasks_to_choose_from():
    with pytest.raises(InvalidArgumentError, match="num_groups='auto' needs at least 3 tasks to choose from; got 2"):
        STGTrainer(mlp(5), LAYOUT.select([0, 1]), num_groups="auto")


def test_bad_models_and_layouts():
    with pytest.raises(InvalidTypeError, match="model must be a factory"):
        STGTrainer(nn.Linear(5, 4), LAYOUT)
    with pytest.raises(InvalidTypeError, match="model must be a callable"):
        STGTrainer("mlp", LAYOUT)
    with pytest.raises(InvalidTypeError, match="layout must be a TaskLayout; got list"):
        STGTrainer(mlp(5), ["a"])
    with pytest.raises(InvalidTypeError, match=r"model must return a torch\.nn.Module for a layout; got int"):
        STGTrainer(lambda layout: 3, LAYOUT, **FAST).fit(make())
    with pytest.raises(InvalidArgumentError, match="parameters to train"):
        STGTrainer(lambda layout: nn.Identity(), LAYOUT, **FAST).fit(make())
    with pytest.raises(InvalidArgumentError, match=r"logits of shape \[16, 7\] for this layout; got \[16, 3\]"):
        STGTrainer(lambda layout: nn.Linear(5, 3), LAYOUT, **FAST).fit(make(rows=64))


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ([], InvalidArgumentError, "train must hold at least one sample; got an empty dataset"),
        (3, InvalidTypeError, "map-style dataset"),
        ((torch.zeros(3, 5),), InvalidArgumentError, r"tuple \(inputs, targets\); got 1 entries"),
        ((torch.zeros(3, 5), torch.zeros(3, 2, dtype=torch.long)), InvalidArgumentError, r"\[samples, 4\].*\(3, 2\)"),
        (make(LAYOUT.select([0, 1])), InvalidArgumentError, r"train must have targets \[samples, 4\].*\[61, 2\]"),
        ([(torch.zeros(5), torch.zeros(2).long())] * 9, InvalidArgumentError, r"targets \[samples, 4\].*\[9, 2\]"),
        ([(torch.zeros(5), torch.full((4,), 0.5))] * 9, InvalidArgumentError, "class numbers as targets"),
        ([(torch.zeros(5), torch.zeros(4).long(), 1)] * 9, InvalidTypeError, "exactly two entries"),
        ([(torch.zeros(5), torch.full((4,), 9))] * 9, PymtgError, "9"),
    ],
)
def test_bad_data(train, error, message):
    with pytest.raises(error, match=message):
        fit(data=train)


def test_repr():
    trainer = STGTrainer(mlp(5, (8,)), LAYOUT, **{**FAST, "num_groups": 2, "epochs": 1})
    assert repr(trainer) == "STGTrainer(4 tasks, num_groups=2, epochs=1, seed=0; not fitted)"
    assert repr(trainer.fit(make())).endswith("; fitted)")


def test_bad_calls():
    trainer = fit()
    with pytest.raises(InvalidArgumentError, match="combine must be one of 'soft', 'hard'; got 'both'"):
        trainer.predict_proba(make(), combine="both")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trainer.nonsense
    with pytest.raises(InvalidArgumentError, match="test must have targets"):
        trainer.evaluate(make(LAYOUT.select([0])))
    with pytest.raises(InvalidArgumentError, match="keep_best=True needs a validation set"):
        fit(keep_best=True)
    with pytest.raises(InvalidTypeError, match="progress must be"):
        fit(progress="loud")
