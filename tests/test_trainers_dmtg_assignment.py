"""DMTGTrainer: assignments that are drawn, learned or given, and the losses that they weigh."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from _dmtg import LAYOUT, branched, fit, leaning, make, trainer

from pymtg import TaskLayout
from pymtg.errors import InvalidArgumentError
from pymtg.nets import TaskAssignment, Temperature


@pytest.mark.parametrize("temperature", [0.5, Temperature(4, 0.1), Temperature(2, 1, "cosine")])
@pytest.mark.parametrize("sampling", ["gumbel", "hard", "softmax", "per_sample"])
def test_all_ways_of_sampling_train(sampling, temperature):
    fitted = fit(sampling=sampling, temperature=temperature, eps=0.01, entropy_weight=0.1)
    history = fitted.result_.stages[0].history
    assert history[-1].loss < history[0].loss
    schedule = Temperature.of(temperature)
    assert fitted.result_.temperatures == pytest.approx([schedule.at(e / 4) for e in range(5)])
    start = fitted.plan.make_assignment(LAYOUT, 3, 0).theta
    assert not torch.equal(fitted.assignment_.theta, start)
    assert fitted.assignment_.draws == (0 if sampling == "softmax" else 16)


@pytest.mark.parametrize(("given", "expected"), [("diagonal", [0, 1, 2, 0]), ("random", None), ("fixed", [1, 1, 2, 1])])
def test_fixed_assignments(given, expected):
    fitted = fit(assignment=TaskAssignment.fixed(expected, 3) if given == "fixed" else given, record=True)
    labels = fitted.groups_.labels.tolist()
    assert labels == expected if expected else sorted(labels.count(k) for k in range(3)) == [1, 1, 2]
    np.testing.assert_array_equal(fitted.assignment_history_, np.eye(3)[labels][None].repeat(5, 0))
    assert fitted.result_.moved == (0,) * 5
    assert fitted.assignment_.draws == 0
    unused = set(range(3)) - set(labels)
    assert len(fitted.model_.branches) == 3 - len(unused)
    if given == "random":
        other = [
            tuple(trainer(assignment="random", seed=s).plan.make_assignment(LAYOUT, 3, s).labels()) for s in range(9)
        ]
        assert len({tuple(int(k) for k in labels) for labels in other}) > 1


def test_what_a_given_assignment_has_of_its_own_is_refused():
    given = TaskAssignment(4, 3, sampling="hard")
    trainer(assignment=given, sampling="hard", temperature=1.0, entropy_weight=0.1)
    for name, value in {"sampling": "softmax", "init": "normal", "eps": 0.1}.items():
        with pytest.raises(
            InvalidArgumentError, match=f"^{name} must be left out for .* given, which has its own; got "
        ):
            trainer(assignment=given, **{name: value})


def test_a_fixed_assignment_trains_only_the_chosen_heads():
    net = branched()
    fitted = fit(net, assignment=TaskAssignment.fixed([1, 1, 2, 1], 3))
    before, after = net.heads.linear.weight, fitted.net_.heads.linear.weight
    changed = (before != after).any(1)  # [K, C]
    wanted = torch.zeros(3, LAYOUT.num_logits, dtype=torch.bool)
    for t, k in enumerate([1, 1, 2, 1]):
        wanted[k, LAYOUT.columns(t)] = True
    assert torch.equal(changed, wanted)
    for name, value in fitted.net_.branch_module(0).state_dict().items():
        assert torch.equal(value, net.branch_module(0).state_dict()[name])


REGRESSION = TaskLayout.regression(["x", "y", "z"])
MIXED = TaskLayout(["a", "x", "b"], [1, 1, 3], kinds=["classification", "regression", "classification"])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("layout", [REGRESSION, MIXED], ids=["regression", "mixed"])
def test_regression(layout, missing):
    data = make(layout, missing=missing, rows=200)
    fitted = fit(layout=layout, data=data, val=make(layout, seed=1), record=True, finetune_epochs=2, warm_epochs=1)
    assert fitted.result_.stages[-1].history[-1].loss < fitted.result_.stages[0].history[0].loss
    scores = fitted.evaluate(data)["dmtg"]
    assert scores.tasks["x"]["r2"] > 0.2
    assert fitted.data_map_.count.float().max() == 4
    assert all(np.isfinite(record.val_score) for record in fitted.result_.stages[1].history)


def test_losses():
    data = make(REGRESSION, rows=100)

    def slow(outputs, targets):
        return (outputs[:, 0] - targets).abs().mean()

    named, called = (fit(layout=REGRESSION, data=data, losses=dict.fromkeys("xyz", loss)) for loss in ("l1", slow))
    for one, other in zip(named.result_.stages[0].history, called.result_.stages[0].history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.task_losses == pytest.approx(other.task_losses, rel=1e-4)
    squares = fit(layout=REGRESSION, data=data)
    assert squares.result_.stages[0].history[0].loss != pytest.approx(named.result_.stages[0].history[0].loss, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="must not be a function for task 'x'"):
        fit(layout=REGRESSION, losses={"x": slow}, sampling="per_sample")
    assert json.dumps(called.result_.to_dict(), allow_nan=False)


def test_theta_rests_for_its_share_of_the_steps():
    fitted = fit(assignment_warmup=0.5)
    history = fitted.assignment_history_
    assert np.array_equal(history[0], history[2])
    assert not np.array_equal(history[2], history[3])
    assert not np.array_equal(*fit(assignment_warmup=0).assignment_history_[:2])


def test_the_entropy_term_decides_and_stands_in_the_loss():
    """Where the branches cannot learn, theta follows the entropy alone."""
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), "assignment": leaning(0.1)}
    one, other = (fit(**still, drop_branches=False, entropy_weight=weight).result_ for weight in (0.0, 2.0))
    assert other.entropies[-1] < other.entropies[0] == one.entropies[0]
    gap = other.stages[0].history[0].loss - one.stages[0].history[0].loss
    assert 2 * other.entropies[1] - 1e-3 < gap < 2 * other.entropies[0] + 1e-3


def test_the_monitored_loss_is_the_trained_one():
    fitted = fit(layout=REGRESSION, losses=dict.fromkeys("xyz", "l1"), val=make(REGRESSION), monitor="loss")
    scores = torch.as_tensor(fitted.predict_proba(make(REGRESSION)))
    targets = make(REGRESSION).targets
    expected = -(scores - targets).abs().mean(0)
    names = list(REGRESSION)
    found = fitted.result_.stages[0].history[-1].val_task_scores
    for name in "xyz":
        assert found[names.index(name)] == pytest.approx(expected[names.index(name)].item(), rel=1e-4)


def test_a_warm_start_has_the_losses_that_were_given():
    fitted = fit(layout=REGRESSION, losses=dict.fromkeys("xyz", "l1"), warm_epochs=1, epochs=1, lr=1e-9)
    warm, grouped = fitted.result_.stages  # the same network in both
    assert warm.history[0].task_losses == pytest.approx(grouped.history[0].task_losses, rel=1e-4)
