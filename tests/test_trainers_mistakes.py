"""Mistakes that a user makes once: each is either told or made harmless."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from pymtg import DMTGTrainer, STGTrainer, TaskLayout
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import BranchedNet, MultiHeadNet, mlp
from pymtg.trainers import KeepBestWarning

LAYOUT = TaskLayout.binary(["a", "b", "c"])


@pytest.fixture
def arrays():
    rng = np.random.default_rng()
    return rng.normal(size=(40, 5)), rng.integers(0, 2, (40, 3))


def trainer(model=None, **options):
    return STGTrainer(model or mlp(5, (8,)), LAYOUT, num_groups=2, epochs=2, num_threads=1, **options)


def test_a_factory_that_hands_out_one_network_twice_is_refused(arrays):
    network = nn.Linear(5, 3)
    with pytest.raises(InvalidArgumentError, match="model must build a new network at each call"):
        trainer(lambda layout: network).fit(arrays)


def test_float64_arrays_are_predicted_as_they_were_fitted(arrays):
    inputs, targets = arrays
    fitted = trainer().fit((inputs, targets))
    expected = fitted.predict_proba(torch.from_numpy(inputs).float())
    torch.testing.assert_close(fitted.predict_proba(inputs), expected, rtol=0, atol=0)


def test_a_dataset_of_floating_targets_trains_as_the_arrays_do(arrays):
    inputs, targets = arrays[0].astype(np.float32), arrays[1].astype(np.float32)
    targets[3, 1] = np.nan
    samples = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(inputs, targets, strict=True)]
    one, other = trainer(missing=True).fit(samples), trainer(missing=True).fit((inputs, targets))
    assert one.data_map_.count[3].tolist() == [2, 0, 2]
    assert torch.equal(one.data_map_.mean, other.data_map_.mean)


def test_fractions_as_targets_are_refused(arrays):
    samples = [(torch.zeros(5), torch.tensor([0.5, 1.0, 0.0]))] * 4
    with pytest.raises(InvalidArgumentError, match=r"class numbers as targets .* got 0.5"):
        trainer().fit(samples)


@pytest.mark.parametrize("kind", [STGTrainer, DMTGTrainer])
def test_inference_mode_is_for_predictions(kind, arrays):
    fresh = kind(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1, num_threads=1)
    with torch.inference_mode(), pytest.raises(InvalidArgumentError, match=r"training must not be inside torch\.infer"):
        fresh.fit(arrays)
    fresh.fit(arrays)
    expected = fresh.predict_proba(arrays[0])
    with torch.inference_mode():
        assert torch.equal(fresh.predict_proba(arrays[0]), expected)


def test_more_threads_than_a_machine_can_start_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"num_threads must be at most .* got 100000"):
        STGTrainer(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1, num_threads=100_000)


@pytest.mark.parametrize("kind", [STGTrainer, DMTGTrainer])
def test_integers_as_a_networks_inputs_are_refused_by_name(kind, arrays):
    inputs, targets = arrays
    with pytest.raises(InvalidTypeError, match=r"inputs must be a floating-point tensor; got torch.int64"):
        kind(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1).fit(((3 * inputs).astype(int), targets))


class Rows(torch.utils.data.Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], self.targets[i]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["arrays", "dataset", "tensors"])
def test_inputs_follow_the_dtype_of_the_weights(dtype, form, arrays):
    inputs, targets = arrays
    data = {
        "arrays": (inputs, targets),
        "dataset": Rows(inputs, targets),
        "tensors": torch.utils.data.TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets)),
    }[form]
    fitted = trainer(lambda layout: nn.Linear(5, layout.num_logits).to(dtype)).fit(data, val=data)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert fitted.predict_proba(inputs).dtype == fitted.predict_proba(inputs.tolist()).dtype == expected
    assert fitted.evaluate(data)["mtl"].mean["accuracy"] > 0


def test_a_branched_network_of_float64_weights(arrays):
    net = BranchedNet(lambda: nn.Linear(5, 8), 2, LAYOUT, features=8).double()
    fitted = DMTGTrainer(net, LAYOUT, epochs=2, keep_best=True, assignment_warmup=0).fit(arrays, arrays)
    assert fitted.predict_proba(arrays[0]).dtype == torch.float64


@pytest.mark.parametrize("kind", [STGTrainer, DMTGTrainer])
def test_no_label_at_all_is_refused(kind, arrays):
    inputs, targets = arrays
    new = kind(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1, keep_best=True)
    with pytest.raises(InvalidArgumentError, match="train must hold labels; all of them are missing"):
        new.fit((inputs, targets * np.nan), arrays)
    with pytest.raises(InvalidArgumentError, match="keep_best=True needs a validation set with labels"):
        new.fit(arrays, (inputs, targets * np.nan))


@pytest.mark.parametrize("specialise", ["together", "one-by-one"])
def test_keep_best_without_a_score_says_so(specialise, arrays):
    with pytest.warns(KeepBestWarning, match="keep_best had nothing to go by in a stage"):
        trainer(keep_best=True, specialise=specialise).fit(arrays, (arrays[0], 0 * arrays[1]))


def test_threads_are_those_asked_for_in_predictions_too(arrays):
    seen = []
    fitted = trainer().fit(arrays)
    fitted.models_[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fitted.predict_proba(arrays[0])
        fitted.evaluate(arrays)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_inputs_that_hold_no_numbers(arrays):
    inputs, targets = arrays
    fitted = trainer().fit(arrays)
    sparse = torch.from_numpy(inputs).float().to_sparse()
    for call in (lambda: trainer().fit((sparse, targets)), lambda: fitted.predict_proba(sparse)):
        with pytest.raises(
            InvalidTypeError, match=r"inputs must be an array or a plain dense tensor; got a torch.sparse_coo"
        ):
            call()
    with pytest.raises(InvalidTypeError, match="inputs must be a floating-point tensor; got list"):
        trainer().fit(Rows(inputs.tolist(), targets))
    with pytest.raises(InvalidTypeError, match="train must have a number per task as targets"):
        trainer().fit(Rows(inputs, targets.astype(str).tolist()))


def test_a_process_without_stderr_has_no_progress_bar(arrays, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert len(trainer(progress=None).fit(arrays).models_) == 2


@pytest.mark.parametrize("groups", [2, "auto"])
def test_regression_targets_that_are_not_standardised_are_told_in_the_trainers_terms(arrays, groups):
    targets = 100 + 20 * np.random.default_rng().normal(size=(40, 3))
    layout = TaskLayout.regression(["a", "b", "c"])
    told = STGTrainer(mlp(5, (8,)), layout, num_groups=groups, epochs=1, num_threads=1)
    with pytest.raises(InvalidArgumentError, match=r"^num_groups(='auto')? .*1 of 3.*not standardised") as error:
        told.fit((arrays[0], targets))
    assert "clusters" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"optimizer": lambda p: None},
            InvalidTypeError,
            "optimizer must return a torch.optim.Optimizer; got NoneType",
        ),
        ({"optimizer": torch.optim.LBFGS}, InvalidArgumentError, "optimizer must step without a closure"),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, InvalidTypeError, "scheduler must return one that"),
        ({"scheduler": lambda o: None}, InvalidTypeError, "scheduler must return one that .* got NoneType"),
    ],
)
@pytest.mark.parametrize("kind", [STGTrainer, DMTGTrainer])
def test_what_does_not_optimise_a_step_at_a_time(kind, options, error, message, arrays):
    with pytest.raises(error, match=message):
        kind(mlp(5, (8,)), LAYOUT, num_groups=2, epochs=1, **options).fit(arrays)


def test_integers_into_branches_of_ones_own(arrays):
    net = BranchedNet(lambda: nn.Linear(5, 8), 2, LAYOUT, features=8)
    with pytest.raises(
        InvalidTypeError, match=r"inputs of a linear layer must be a floating-point tensor; got torch.int64"
    ):
        DMTGTrainer(net, LAYOUT, epochs=1).fit(((3 * arrays[0]).astype(int), arrays[1]))


class Keeping(nn.Module):
    """Keeps its last activations and a frozen mask with an infinity; normalises by what a hook computes."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.utils.spectral_norm(nn.Linear(5, 8)), nn.Linear(8, outputs)
        self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)

    def forward(self, inputs):
        self.kept = self.first(inputs).relu()
        self.by_name = {"first": (self.kept, [self.kept.sum()])}
        return self.last(self.kept)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("init", ["joint", "fresh"])
def test_networks_that_keep_activations_are_copied_after_training(init, arrays):
    fitted = trainer(lambda layout: Keeping(layout.num_logits), init=init).fit(arrays)
    assert [network.kept.requires_grad for network in (fitted.joint_model_, *fitted.models_)] == [True] * 3
    assert fitted.predict_proba(arrays[0]).isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
def test_branches_that_keep_activations_are_copied_after_training(arrays):
    net = BranchedNet(lambda: Keeping(4), 2, LAYOUT, features=4, trunk=nn.Identity())
    net(torch.ones(2, 5))
    fitted = DMTGTrainer(net, LAYOUT, epochs=3, finetune_epochs=1, num_threads=1).fit(arrays)
    assert fitted.predict_proba(arrays[0]).isfinite().all()


def test_branches_that_return_no_tensor(arrays):
    class Two(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs), inputs

    net = BranchedNet(lambda: Two(5, 4), 2, LAYOUT, features=4)
    with pytest.raises(InvalidTypeError, match="branches must return a tensor of features; got tuple"):
        DMTGTrainer(net, LAYOUT, epochs=2, num_threads=1).fit(arrays)


def lazy(layout):
    return nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(layout.num_logits))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("init", ["joint", "fresh"])
def test_lazy_layers_are_trained_together_as_one_by_one(init, arrays):
    options = {"seed": 0, "init": init}
    apart = trainer(lazy, specialise="one-by-one", **options).fit(arrays)
    together = trainer(lazy, specialise="together", **options).fit(arrays)
    expected = apart.predict_proba(arrays[0])
    torch.testing.assert_close(together.predict_proba(arrays[0]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_run_with_lazy_layers_is_gone_on_with_bit_for_bit(arrays, tmp_path):
    def stop(stage, record):
        if stage != "joint":
            raise KeyError(stage)

    options = {"seed": 0, "init": "joint"}
    whole = trainer(lazy, **options).fit(arrays)
    with pytest.raises(KeyError):
        trainer(lazy, **options, checkpoint_dir=tmp_path, on_epoch_end=stop).fit(arrays)
    resumed = trainer(lazy, **options, checkpoint_dir=tmp_path).fit(arrays, resume=True)
    for one, other in zip(whole.models_, resumed.models_, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("warm_epochs", [0, 1])
def test_dmtgs_lazy_layers_get_shapes_and_a_run_is_gone_on_with_bit_for_bit(warm_epochs, arrays, tmp_path):
    def branches(layout):
        return MultiHeadNet(layout, nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(8), nn.ReLU()), 8)

    def made(**more):
        return DMTGTrainer(branches, LAYOUT, num_groups=2, epochs=2, warm_epochs=warm_epochs, num_threads=1, **more)

    def stop(stage, record):
        if stage == "dmtg":
            raise KeyError(stage)

    whole = made().fit(arrays)
    with pytest.raises(KeyError):
        made(checkpoint_dir=tmp_path, on_epoch_end=stop).fit(arrays)
    resumed = made(checkpoint_dir=tmp_path).fit(arrays, resume=True)
    assert torch.equal(whole.predict_proba(arrays[0]), resumed.predict_proba(arrays[0]))


@pytest.mark.parametrize("mode", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
@pytest.mark.parametrize("amp", [False, True])
def test_the_modes_around_a_fit_play_no_part(mode, amp, arrays):
    plain = trainer(seed=0, amp=amp).fit(arrays)
    with mode():
        within = trainer(seed=0, amp=amp).fit(arrays)
    for one, other in zip((plain.joint_model_, *plain.models_), (within.joint_model_, *within.models_), strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
