"""STGTrainer: how the networks' predictions are combined, and which epoch's weights make them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from _stg import FAST, LAYOUT, Dropping, fit, make

from pymtg import STGTrainer
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import mlp
from pymtg.trainers._predict import class_probabilities


def test_soft_and_hard_combination():
    trainer, test = fit(fuzzifier=1.8), make(seed=3, rows=23)
    u = trainer.groups_.memberships
    parts = []
    for network in trainer.models_:
        with torch.no_grad():
            split = LAYOUT.probabilities(network(test.inputs))
        parts.append([p[:, 1:] if c == 1 else p for p, c in zip(split, LAYOUT.num_classes, strict=True)])
    soft, hard = trainer.predict_proba(test.inputs), trainer.predict_proba(test, combine="hard")
    for t in range(4):
        by_hand = sum(float(u[t, k]) * parts[k][t] for k in range(2))
        torch.testing.assert_close(soft[:, LAYOUT.columns(t)], by_hand, atol=1e-6, rtol=0)
        torch.testing.assert_close(hard[:, LAYOUT.columns(t)], parts[u[t].argmax()][t])
    torch.testing.assert_close(trainer.predict_proba(test.inputs.numpy()), soft)
    rows = test.inputs.numpy()
    read_only = rows.view()
    read_only.flags.writeable = False
    for odd in (
        rows.astype(">f4"),
        rows.astype(np.longdouble),
        np.asfortranarray(rows),
        read_only,
    ):  # as fit takes them
        torch.testing.assert_close(trainer.predict_proba(odd), soft)
    with pytest.raises(InvalidTypeError, match=r"inputs must be a dense array, as toarray\(\) makes one; got a csr_"):
        trainer.predict_proba(scipy.sparse.csr_matrix(rows))
    assert trainer.predict_proba(torch.empty(0, 5)).shape == (0, LAYOUT.num_logits)
    scores = trainer.evaluate(test)
    assert list(scores) == ["stg_soft", "stg_hard", "mtl"]
    assert list(scores["mtl"].tasks) == list(LAYOUT.names)


@pytest.mark.parametrize("options", [{}, {"specialise": "together"}, {"specialise": "one-by-one", "num_groups": 3}])
def test_pruned_to_the_hard_combination(options):
    trainer, test = fit(**options), make(seed=3, rows=23)
    pruned = trainer.prune()
    assert not pruned.training
    with torch.no_grad():
        probabilities = class_probabilities(pruned(test.inputs), LAYOUT)
    torch.testing.assert_close(probabilities, trainer.predict_proba(test, combine="hard"), atol=1e-6, rtol=0)
    hard = trainer.groups_.memberships.argmax(1)
    assert [pruned.branch_ids[k] for k in pruned.labels] == hard.tolist()
    assert len(pruned.branches) == len(set(hard.tolist()))
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.zero_()
    assert all(bool(weight.any()) for net in trainer.models_ for weight in net.parameters())  # nothing is shared


def test_only_multi_head_networks_are_pruned():
    trainer = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    with pytest.raises(InvalidTypeError, match=r"networks\[0\] must be a pymtg.nets.MultiHeadNet; got Dropping"):
        trainer.prune()


@pytest.mark.parametrize("combine", ["soft", "hard"])
def test_predicted_classes_are_those_that_are_scored(combine):
    trainer, test = fit(fuzzifier=1.8), make(seed=3, rows=23)
    predicted = trainer.predict(test.inputs, combine)
    assert predicted.dtype == torch.int64
    scores = trainer.evaluate(test)[f"stg_{combine}"]
    for t, name in enumerate(LAYOUT):
        assert (predicted[:, t] == test.targets[:, t]).float().mean().item() == pytest.approx(
            scores.tasks[name]["accuracy"]
        )
    assert trainer.predict(torch.empty(0, 5)).shape == (0, 4)
    inputs = test.inputs.clone()
    inputs[7, 2] = torch.nan
    with pytest.raises(InvalidArgumentError, match="inputs must give numbers for classes; row 7 gives nan for 'a'"):
        trainer.predict(inputs, combine)


def test_prediction_restores_each_modules_mode():
    trainer = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    network = trainer.models_[0].train()
    network.net[2].eval()
    first, second = trainer.predict_proba(make()), trainer.predict_proba(make())
    assert torch.equal(first, second)
    assert network.training
    assert network.net[1].training
    assert not network.net[2].training


def test_best_epoch_is_kept():
    train, val = make(), make(seed=7)
    trainer = STGTrainer(mlp(5, (8,)), LAYOUT, num_groups=2, keep_best=True, lr=0.3, **{**FAST, "epochs": 12}).fit(
        train, val
    )
    stage = trainer.result_.joint
    scores = [record.val_score for record in stage.history]
    assert stage.best_epoch == 1 + int(np.argmax(scores))
    assert stage.best_epoch < 12  # a learning rate this high wanders
    kept = trainer.evaluate(val)["mtl"].mean["balanced_accuracy"]
    assert kept == pytest.approx(max(scores))
    group = trainer.result_.specialised[0]
    weights, record = trainer.groups_.memberships[:, 0], group.history[0]
    assert record.val_score == pytest.approx(np.average(record.val_task_scores, weights=weights), rel=1e-5)


@pytest.mark.parametrize("monitor", ["loss", "roc_auc", "accuracy"])
def test_monitors(monitor):
    trainer = STGTrainer(mlp(5, (8,)), LAYOUT, num_groups=2, monitor=monitor, **FAST)
    record = trainer.fit(make(), make(seed=7, missing=True)).result_.joint.history[-1]
    assert np.isfinite(record.val_score)
    assert trainer.result_.joint.best_epoch is None  # watched, not kept
