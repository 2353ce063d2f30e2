"""STGTrainer: recording, weights, combination, determinism, and what it refuses."""

from __future__ import annotations

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from pymtg import MultiTaskLoss, STGTrainer, TaskLayout
from pymtg.data import from_arrays
from pymtg.errors import InvalidArgumentError, InvalidTypeError, PymtgError
from pymtg.nets import mlp
from pymtg.trainers import NonFiniteLossError, NotFittedError, UnlabelledTaskWarning
from pymtg.trainers._predict import class_probabilities

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
FAST = {"epochs": 4, "batch_size": 16, "device": "cpu", "num_threads": 1, "progress": False}


def make(layout=LAYOUT, rows=61, seed=0, missing=False):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator)
    scores = inputs @ torch.randn(5, layout.num_tasks, generator=generator)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    targets = (torch.sigmoid(scores) * counts).long().clamp(max=counts - 1)
    if missing:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    return from_arrays(inputs, targets, layout)


def fit(layout=LAYOUT, data=None, **options):
    data = make(layout) if data is None else data
    return STGTrainer(mlp(5, (8,)), layout, **{**FAST, "num_groups": 2, **options}).fit(data)


def states(trainer):
    return [network.state_dict() for network in (trainer.joint_model_, *trainer.models_)]


def assert_same(first, second):
    for one, other in zip(states(first), states(second), strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert np.array_equal(first.groups_.memberships, second.groups_.memberships)
    assert torch.equal(first.data_map_.mean, second.data_map_.mean)
    assert torch.equal(first.data_map_.std, second.data_map_.std)


class Dropping(nn.Module):
    """Draws from the global generator while it trains."""

    def __init__(self, layout):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, layout.num_logits))

    def forward(self, inputs):
        return self.net(inputs)


@pytest.mark.parametrize("init", ["fresh", "joint"])
def test_same_seed_gives_the_same_bits(init):
    first, second = (STGTrainer(Dropping, LAYOUT, num_groups=2, init=init, **FAST).fit(make()) for _ in range(2))
    assert_same(first, second)
    other = STGTrainer(Dropping, LAYOUT, num_groups=2, init=init, seed=1, **FAST).fit(make())
    assert not torch.equal(states(first)[0]["net.0.weight"], states(other)[0]["net.0.weight"])


def test_a_plain_dataset_trains_the_same_as_tensors():
    data = make()
    alone = {"specialise": "one-by-one"}  # as a dataset's specialised networks are trained
    assert_same(fit(data=data, **alone), fit(data=[data[i] for i in range(len(data))]))
    assert_same(fit(data=data), fit(data=(data.inputs.numpy(), data.targets.numpy())))
    assert_same(fit(data=data), fit(data=torch.utils.data.TensorDataset(data.inputs, data.targets)))


def test_the_callers_random_states_are_left_alone():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    trainer = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    trainer.predict_proba(make())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_the_callers_random_state_does_not_matter():
    torch.manual_seed(1)
    first = STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make())
    torch.manual_seed(2)
    assert_same(first, STGTrainer(Dropping, LAYOUT, num_groups=2, **FAST).fit(make()))


class Spy(nn.Module):
    """Reads the sample's number off an extra input column, and keeps what it returned for it in training mode."""

    seen: list

    def __init__(self, layout):
        super().__init__()
        self.net, self.seen = nn.Linear(5, layout.num_logits), []

    def forward(self, inputs):
        logits = self.net(inputs[:, :5])
        if self.training:
            self.seen.append((inputs[:, 5].long(), logits.detach().clone()))
        return logits


@pytest.mark.parametrize("missing", [False, True])
def test_the_map_holds_the_training_passes_probabilities(missing):
    data = make(missing=missing)
    marked = torch.cat([data.inputs, torch.arange(len(data)).float()[:, None]], dim=1)
    trainer = STGTrainer(Spy, LAYOUT, num_groups=2, **FAST).fit((marked, data.targets), (marked[:9], data.targets[:9]))
    seen = [[] for _ in range(len(data))]
    for ids, logits in trainer.joint_model_.seen:
        parts = LAYOUT.probabilities(logits.double())
        for row, i in enumerate(ids.tolist()):
            gold = data.targets[i].clamp(min=0).tolist()
            seen[i].append([part[row, y].item() for part, y in zip(parts, gold, strict=True)])
    history = torch.tensor(seen, dtype=torch.float64)  # [M, epochs, T]
    assert history.shape == (len(data), 4, 4)
    known = data.targets != -100
    torch.testing.assert_close(trainer.data_map_.mean.double()[known], history.mean(1)[known], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        trainer.data_map_.std.double()[known], history.std(1, correction=0)[known], atol=1e-6, rtol=0
    )
    assert trainer.data_map_.missing == missing
    assert trainer.result_.snapshot_epochs == (1, 2, 3, 4)
    assert len(trainer.data_map_.snapshots) == 4


def test_specialised_networks_step_along_the_weighted_loss():
    built, data = [], make()

    def factory(layout):
        network = nn.Linear(5, layout.num_logits)
        built.append(copy.deepcopy(network))
        return network

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    options = {**FAST, "batch_size": 100, "specialised_epochs": 1, "optimizer": sgd, "fuzzifier": 2.0}
    trainer = STGTrainer(factory, LAYOUT, num_groups=2, **options).fit(data)
    memberships = torch.tensor(trainer.groups_.memberships).float()
    assert ((memberships > 0.01) & (memberships < 0.99)).any()  # else the test would show little
    for k, network in enumerate(trainer.models_):
        start = built[1 + k]
        total = MultiTaskLoss(LAYOUT, task_weights=memberships[:, k])(start(data.inputs), data.targets)
        total.backward()
        torch.testing.assert_close(network.weight, start.weight - 0.1 * start.weight.grad)


def test_a_task_outside_the_group_adds_nothing():
    built = []

    def factory(layout):
        network = nn.Linear(5, layout.num_logits)
        built.append(copy.deepcopy(network))
        return network

    trainer = STGTrainer(factory, LAYOUT, num_groups=4, mode="kmeans", **FAST).fit(make())
    assert sorted(trainer.groups_.labels) == [0, 1, 2, 3]  # K = T: each task on its own
    for k, network in enumerate(trainer.models_):
        for t, label in enumerate(trainer.groups_.labels):
            moved = not torch.equal(network.weight[LAYOUT.columns(t)], built[1 + k].weight[LAYOUT.columns(t)])
            assert moved == (label == k)


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


@pytest.mark.parametrize("form", ["together", "one-by-one"])
def test_result_adds_up(form):
    seen = []

    def note(stage, record):
        seen.append((stage, record.epoch))

    trainer = fit(init="joint", on_epoch_end=note, specialise=form)
    result = trainer.result_
    assert [stage.name for stage in result.stages] == ["joint", "group 0", "group 1"]
    assert [stage.epochs for stage in result.stages] == [4, 2, 2]
    steps = [(k, e) for k in (0, 1) for e in (1, 2)] if form == "one-by-one" else [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert seen == [("joint", e) for e in (1, 2, 3, 4)] + [(f"group {k}", e) for k, e in steps]
    assert result.together == (form == "together")
    assert result.epochs == 8
    assert result.parameters == 2 * sum(p.numel() for p in trainer.joint_model_.parameters())
    assert result.seconds >= sum(stage.seconds for stage in result.stages)
    losses = result.joint.history[0]
    assert losses.loss == pytest.approx(sum(losses.task_losses), rel=1e-5)
    assert result.joint.history[-1].loss < losses.loss
    assert set(result.to_dict()) >= {"seed", "stages", "groups", "snapshot_epochs"}


@pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (2, 2), (4, 1), (4, 4), (4, "auto")])
def test_extreme_numbers_of_groups(tasks, groups):
    layout = LAYOUT.select(range(tasks))
    trainer = fit(layout, num_groups=groups)
    assert trainer.groups_.memberships.shape[0] == tasks
    assert len(trainer.models_) == trainer.groups_.memberships.shape[1]
    assert np.isfinite(trainer.predict_proba(make(layout)).numpy()).all()


def test_missing_labels_and_a_task_without_any():
    data = make(missing=True)
    data.targets[:, 2] = -100
    with pytest.warns(UnlabelledTaskWarning, match=r"train holds no label for 1 task: 'c'\. Nothing is learned"):
        trainer = fit(data=data)
    assert trainer.data_map_.missing
    assert trainer.result_.joint.history[0].task_losses[2] == 0


def test_amp_on_the_cpu():
    trainer = fit(amp="bfloat16")
    assert trainer.predict_proba(make()).dtype == torch.float32
    assert not torch.equal(states(trainer)[0]["head.weight"], states(fit())[0]["head.weight"])
    assert trainer.result_.joint.history[-1].loss == pytest.approx(fit().result_.joint.history[-1].loss, rel=0.05)


@pytest.mark.parametrize(("form", "schedules"), [("together", 2), ("one-by-one", 3)])
def test_scheduler_steps_once_an_epoch(form, schedules):
    rates = []

    def halving(optimizer):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        rates.append(schedule)
        return schedule

    fit(scheduler=halving, specialise=form)
    assert [schedule.get_last_lr()[0] for schedule in rates] == [pytest.approx(1e-3 / 2**4)] * schedules


def test_dict_inputs():
    data = make()
    samples = [({"x": x, "n": torch.tensor(1.0)}, y) for x, y in (data[i] for i in range(len(data)))]

    class Net(nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.net = nn.Linear(5, layout.num_logits)

        def forward(self, inputs):
            return self.net(inputs["x"]) * inputs["n"][:, None]

    trainer = STGTrainer(Net, LAYOUT, num_groups=2, **FAST).fit(samples)
    assert trainer.predict_proba(samples).shape == (61, LAYOUT.num_logits)


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


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    fit(progress=True)
    assert "12/12 epochs" in capsys.readouterr().err
    fit(progress=None)
    assert capsys.readouterr().err == ""


def test_importing_trainers_is_light():
    code = (
        "import sys, pymtg.trainers; print([m for m in ('sklearn', 'rich', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
