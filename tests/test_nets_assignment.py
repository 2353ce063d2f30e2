"""TaskAssignment: samples against float64 with the same noise, its one stream of draws, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets import TaskAssignment

LEARNED = ("gumbel", "hard", "softmax", "per_sample")
NOISY = ("gumbel", "hard", "per_sample")
T, K, B = 5, 3, 7


def made(generator, sampling="gumbel", tasks=T, branches=K, dtype=torch.float32, spread=1.0, **options):
    """An assignment with a theta of random numbers and a random seed."""
    seed = int(torch.randint(2**62, (), generator=generator))
    assignment = TaskAssignment(tasks, branches, sampling=sampling, **{"seed": seed, **options})
    with torch.no_grad():
        assignment.theta.copy_(spread * torch.randn(tasks, branches, generator=generator))
    return assignment.to(dtype)


def noise_of(assignment, rows=None):
    """The noise of the next draw, not spent: with theta 0, a sample's logarithm is its noise and a constant."""
    twin = copy.deepcopy(assignment).double()
    twin.sampling = "per_sample" if twin.sampling == "per_sample" else "gumbel"
    with torch.no_grad():
        twin.theta.zero_()
        return twin.sample(1.0, rows).log()


def truth(theta, noise, temperature):
    return ((theta.double() + noise) / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling", LEARNED)
def test_samples_against_float64(sampling, dtype, temperature, generator):
    assignment = made(generator, sampling, dtype=dtype)
    noise = 0 if sampling == "softmax" else noise_of(assignment, B)
    theta = assignment.theta.detach().double().requires_grad_()
    relaxed = truth(theta, noise, temperature)
    sample = assignment.sample(temperature, rows=B)
    assert sample.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert sample.shape == ((B, T, K) if sampling == "per_sample" else (T, K))
    exact = dtype == torch.float64
    if sampling == "hard":
        assert torch.equal(sample, torch.nn.functional.one_hot((theta + noise).argmax(-1), K).to(sample))
    else:
        torch.testing.assert_close(sample.double(), relaxed, rtol=0, atol=1e-12 if exact else 2e-6 / temperature + 1e-6)
    upstream = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((relaxed * upstream).sum(), theta)
    (found,) = torch.autograd.grad((sample * upstream).sum(), assignment.theta)
    assert found.dtype == dtype
    narrow = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-10 if exact else 1e-4)
    tiny = 0 if exact else 1e-6 / temperature  # of a share that is almost 1, float32 loses the rest
    torch.testing.assert_close(found.double(), wanted, rtol=narrow, atol=narrow * float(wanted.abs().max()) + tiny)


@pytest.mark.parametrize("temperature", [0.5, 2.5, 1e12])
@pytest.mark.parametrize("sampling", NOISY)
def test_how_often_a_branch_is_drawn_follows_softmax_of_theta(sampling, temperature, generator):
    assignment = made(generator, sampling, tasks=2, branches=4)
    draws = 2000
    if sampling == "hard":
        chosen = torch.stack([assignment.sample(temperature).argmax(-1) for _ in range(draws)])
    else:  # float64 keeps the order of logits that a high temperature brings close together
        samples = assignment.double()
        rows = [samples.sample(temperature, rows=4) for _ in range(draws)]
        chosen = torch.stack(rows).argmax(-1).view(-1, 2)
    expected = assignment.probabilities().double()
    shares = torch.nn.functional.one_hot(chosen, 4).double().mean(0)
    sigma = (expected * (1 - expected) / len(chosen)).sqrt()
    assert ((shares - expected).abs() <= 5 * sigma).all(), (shares, expected)


def test_draws_are_independent_of_one_another(generator):
    """Correlations of the noise between successive draws, between neighbours in one, and between seeds."""
    assignment = made(generator, "per_sample", tasks=4, branches=5)
    other = TaskAssignment(4, 5, sampling="per_sample", seed=assignment.seed + 1)
    noise = torch.stack([(-noise_of(a, 50)).double().flatten() for a in (assignment, other)])
    each = []
    for _ in range(60):
        each.append(noise_of(assignment, 50).exp().flatten())
        assignment.sample(1.0, rows=50)
    series = torch.stack(each)
    series = (series - series.mean()) / series.std()
    for one, two in ((series[:-1], series[1:]), (series[:, :-5], series[:, 5:])):
        assert abs(float((one * two).mean())) * math.sqrt(one.numel()) < 5
    assert abs(float(torch.corrcoef(noise)[0, 1])) * math.sqrt(noise.shape[1]) < 5.5


@settings(deadline=None, max_examples=60)
@given(
    temperature=st.floats(-30, 30).map(lambda x: min(max(10**x, 1e-30), 1e30)),
    sampling=st.sampled_from(LEARNED),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    spread=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**63 - 1),
)
def test_no_temperature_makes_a_nan(temperature, sampling, dtype, spread, seed):
    assignment = made(torch.Generator().manual_seed(seed), sampling, dtype=dtype, spread=spread)
    sample = assignment.sample(temperature, rows=B)
    assert torch.isfinite(sample).all()
    assert ((sample >= 0) & (sample <= 1)).all()
    torch.testing.assert_close(sample.sum(-1), torch.ones_like(sample[..., 0]))
    (gradient,) = torch.autograd.grad((sample * torch.linspace(-1, 1, K)).sum(), assignment.theta)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("sampling", LEARNED)
def test_gradcheck_of_samples(sampling, generator):
    assignment = made(generator, sampling, dtype=torch.float64)

    def sample(theta):
        again = copy.deepcopy(assignment)
        again.theta = torch.nn.Parameter(theta)
        return torch.func.functional_call(again, {"theta": theta}, (0.7,), {"rows": 3})

    theta = assignment.theta.detach().clone().requires_grad_()
    if sampling == "hard":  # straight-through: the gradient is that of the relaxed sample
        soft = copy.deepcopy(assignment)
        soft.sampling = "gumbel"
        upstream = torch.randn(T, K, generator=generator, dtype=torch.float64)
        found = torch.autograd.grad((assignment.sample(0.7) * upstream).sum(), assignment.theta)
        wanted = torch.autograd.grad((soft.sample(0.7) * upstream).sum(), soft.theta)
        assert torch.equal(found[0], wanted[0])
    else:
        assert torch.autograd.gradcheck(sample, (theta,))


def naive_entropy(theta):
    p = theta.softmax(-1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(-1).mean()


@pytest.mark.parametrize("shift", [0, 1e3, -1e4])
@pytest.mark.parametrize("tasks", [1, 6])
@pytest.mark.parametrize("branches", [1, 2, 3, 9])
def test_entropy_against_the_formula(branches, tasks, shift, generator):
    assignment = made(generator, tasks=tasks, branches=branches, spread=3.0)
    with torch.no_grad():
        assignment.theta.add_(shift)
    theta = assignment.theta.detach().double().requires_grad_()
    found, wanted = assignment.entropy(), naive_entropy(theta)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, assignment.theta)
    if branches == 1:
        assert found == 0
        assert gradient.eq(0).all()
    else:
        truth = torch.autograd.grad(wanted, theta)[0]
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-6)  # differences of numbers near 1
    assert torch.autograd.gradcheck(
        lambda own: torch.func.functional_call(Entropy(assignment.double()), {"of.theta": own}, ()), (theta,)
    )


class Entropy(torch.nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self):
        return self.of.entropy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("branches", [2, 4])
def test_wide_gaps(dtype, autocast, branches, generator):
    assignment = made(generator, branches=branches)
    with torch.no_grad():
        assignment.theta[:3] = 0
        assignment.theta[0, 1], assignment.theta[1, 0], assignment.theta[2, -1] = 1e4, -1e4, 60
    assignment = assignment.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        entropy = assignment.entropy()
        sample = assignment.sample(0.01)
        probabilities = assignment.probabilities()
    assert entropy.dtype == sample.dtype == probabilities.dtype
    assert entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = naive_entropy(assignment.theta.detach().double())
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(entropy + (sample * torch.arange(branches)).sum(), assignment.theta)
    assert torch.isfinite(gradient).all()


def test_the_entropy_of_a_decided_assignment_is_0_and_that_of_equal_shares_the_largest():
    assignment = TaskAssignment(4, 2)
    assert assignment.entropy().item() == pytest.approx(2 * math.log(2))
    fixed, decided = TaskAssignment.fixed([0, 1, 1, 2], 3), TaskAssignment(4, 3)
    with torch.no_grad():
        decided.theta.copy_(1e4 * fixed.theta)
    assert decided.entropy().item() == 0
    assert fixed.entropy().item() == 0


@pytest.mark.parametrize("sampling", NOISY)
def test_one_stream_by_seed(sampling, generator):
    one, same, other = (made(generator, sampling, seed=s) for s in (3, 3, 4))
    for assignment in (same, other):
        assignment.load_state_dict(one.state_dict())
    first = [one.sample(1.0, rows=B) for _ in range(3)]
    assert one.draws == 3
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = [same.sample(1.0, rows=B) for _ in range(3)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    different = [other.sample(1.0, rows=64) for _ in range(3)]
    assert not all(torch.equal(a, b[: len(a)]) for a, b in zip(first, different, strict=True))


def test_the_number_of_threads_changes_nothing(two_threads):
    assignment = TaskAssignment(40, 20, sampling="per_sample", seed=5)
    twin = copy.deepcopy(assignment)
    many = assignment.sample(1.0, rows=200)
    torch.set_num_threads(1)
    assert torch.equal(many, twin.sample(1.0, rows=200))


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("sampling", LEARNED)
def test_a_copy_goes_on_with_the_same_draws(sampling, copied, generator):
    assignment = made(generator, sampling)
    for _ in range(4):
        assignment.sample(1.0, rows=B)
    if copied == "state_dict":
        twin = TaskAssignment(T, K, sampling=sampling, seed=assignment.seed)
        twin.load_state_dict(assignment.state_dict())
    else:
        twin = copy.deepcopy(assignment) if copied == "deepcopy" else pickle.loads(pickle.dumps(assignment))
    for _ in range(3):
        assert torch.equal(assignment.sample(0.5, rows=B), twin.sample(0.5, rows=B))
    assert twin.draws == assignment.draws


@pytest.mark.parametrize("sampling", [*LEARNED, "fixed"])
def test_eval_mode_draws_nothing(sampling, generator):
    assignment = made(generator, sampling).eval()
    sample = assignment.sample(1.0)
    assert assignment.draws == 0
    assert torch.equal(sample, torch.nn.functional.one_hot(assignment.labels(), K).float())
    assert torch.equal(assignment(2.0), sample)
    assert not sample.requires_grad


@pytest.mark.parametrize("bounds", [(0, 7), (0, 3, 7), (0, 1, 1, 6, 7)])
def test_rows_of_the_whole_batchs_draws(bounds, generator):
    whole = made(generator, "per_sample")
    ranks = [copy.deepcopy(whole) for _ in bounds[1:]]
    for _ in range(3):
        sample = whole.sample(0.8, rows=bounds[-1])
        cut = zip(ranks, bounds[:-1], bounds[1:], strict=True)
        parts = [rank.sample(0.8, rows=b - a, first_row=a) for rank, a, b in cut]
        assert torch.equal(torch.cat(parts), sample)


@pytest.mark.parametrize("sampling", NOISY)
@pytest.mark.parametrize("keep", [[0, 2], [2], [3, 0, 1], [2, 0, 3, 1], torch.tensor([1, 3])])
def test_dropping_leaves_the_other_branches_alone(sampling, keep, generator):
    """Draws, gradients and Adam's state of the branches that stay, against a full assignment cut by hand."""
    assignment = made(generator, sampling, branches=4, dtype=torch.float64)
    adam = torch.optim.Adam([assignment.theta], lr=0.1)
    weights = torch.randn(T, 4, generator=generator, dtype=torch.float64)
    for _ in range(3):
        adam.zero_grad()
        (assignment.sample(1.0, rows=B) * weights).sum().backward()
        adam.step()
    full = copy.deepcopy(assignment)
    state = {name: value.clone() for name, value in adam.state[assignment.theta].items()}
    at = torch.as_tensor(keep).tolist()
    gradient = assignment.theta.grad.clone()
    assignment.drop(keep, adam)
    assert assignment.branch_ids == tuple(at)
    assert (assignment.num_branches, assignment.num_tasks) == (len(at), T)
    assert torch.equal(assignment.theta, full.theta[:, at])
    assert torch.equal(assignment.theta.grad, gradient[:, at])
    (parameter,) = adam.param_groups[0]["params"]
    assert parameter is assignment.theta
    assert list(adam.state) == [parameter]
    for name, value in state.items():
        assert torch.equal(adam.state[parameter][name], value[:, at] if value.ndim else value)
    noise = noise_of(full, B)[..., at]
    sample = assignment.sample(1.0, rows=B)
    if sampling == "hard":
        assert torch.equal(sample.argmax(-1), (assignment.theta + noise).argmax(-1))
    else:
        torch.testing.assert_close(sample, truth(assignment.theta, noise, 1.0))
    (sample * weights[:, at]).sum().backward()
    adam.step()
    if len(at) > 1:
        assignment.drop([1])
        assert assignment.branch_ids == (at[1],)
        assert assignment.sample(1.0, rows=B).eq(1).all()


def test_dropping_before_the_first_step_and_beside_other_parameters(generator):
    assignment, other = made(generator), torch.nn.Linear(2, 2)
    adam = torch.optim.Adam([{"params": other.parameters()}, {"params": [assignment.theta], "lr": 0.5}])
    assignment.drop([2, 0], adam)
    assert adam.param_groups[1]["params"][0] is assignment.theta
    assignment.sample(1.0)[:, 0].sum().backward()
    adam.step()
    assert len(adam.state_dict()["state"]) == 1
    stranger = torch.optim.Adam(other.parameters())
    assignment.drop([0], stranger)
    assert stranger.state_dict()["state"] == {}


@pytest.mark.parametrize("keep", [[], [0, 0], [3], [-1], [0.5], ["a"], [True]])
def test_nothing_is_dropped_on_an_error(keep):
    assignment = TaskAssignment(T, K)
    theta = assignment.theta
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match="keep must"):
        assignment.drop(keep)
    assert assignment.theta is theta
    assert assignment.branch_ids == (0, 1, 2)


@pytest.mark.parametrize("labels", [[0, 3, 3], (1,), torch.tensor([2, 0]), torch.tensor([1, 3], dtype=torch.uint8)])
def test_fixed(labels):
    assignment = TaskAssignment.fixed(labels, 4)
    expected = torch.as_tensor(labels).long()
    for _ in range(2):
        assert torch.equal(assignment.sample(0.3), torch.nn.functional.one_hot(expected, 4).float())
        assert torch.equal(assignment.labels(), expected)
        assert torch.equal(assignment.probabilities(), assignment.sample(1.0))
        assignment.eval()
    assert not assignment.theta.requires_grad
    assert assignment.draws == 0
    assignment.drop(sorted(set(expected.tolist())))
    assert torch.equal(torch.tensor(assignment.branch_ids)[assignment.labels()], expected)
    assert not assignment.theta.requires_grad


@pytest.mark.parametrize(("tasks", "branches"), [(1, 1), (5, 1), (1, 4), (2, 7)])
@pytest.mark.parametrize("sampling", LEARNED)
@pytest.mark.parametrize("init", ["ones", "diagonal", "normal"])
def test_extreme_sizes(sampling, init, tasks, branches):
    assignment = TaskAssignment(tasks, branches, sampling=sampling, init=init, seed=1)
    for temperature in (1e-30, 1.0, 1e30):
        sample = assignment.sample(temperature, rows=2)
        assert sample.shape[-2:] == (tasks, branches)
        torch.testing.assert_close(sample.sum(-1), torch.ones_like(sample[..., 0]))
    assert assignment.labels().tolist() == [0] * tasks or init != "ones"
    (assignment.sample(1.0, rows=2).sum() + assignment.entropy()).backward()
    assert torch.isfinite(assignment.theta.grad).all()
    assert assignment.sample(1.0, rows=0).shape[-2:] == (tasks, branches)


def test_starts():
    assert TaskAssignment(3, 2).theta.eq(1).all()
    spread = TaskAssignment(40, 30, eps=0.5).theta
    assert ((spread >= 1) & (spread < 1.5)).all()
    assert spread.std() > 0.1
    normal = TaskAssignment(50, 40, init="normal", seed=2).theta.detach()
    assert abs(float(normal.mean()) - 1) < 5 * 0.2 / math.sqrt(2000)
    assert abs(float(normal.std()) - 0.2) < 0.02
    diagonal = TaskAssignment(5, 3, init="diagonal")
    assert diagonal.labels().tolist() == [0, 1, 2, 0, 1]
    torch.testing.assert_close(diagonal.theta[1], torch.tensor([0.05, 0.9, 0.05]))
    assert torch.equal(TaskAssignment(4, 3, eps=1.0, seed=9).theta, TaskAssignment(4, 3, eps=1.0, seed=9).theta)
    assert not torch.equal(TaskAssignment(4, 3, eps=1.0, seed=9).theta, TaskAssignment(4, 3, eps=1.0, seed=8).theta)


def test_a_start_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    TaskAssignment(4, 3, init="normal")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_tasks": 0}, InvalidArgumentError, "num_tasks must be .*0"),
        ({"num_branches": -1}, InvalidArgumentError, "num_branches must be .*-1"),
        ({"num_tasks": 2.0}, InvalidTypeError, "num_tasks must be an integer"),
        ({"sampling": "soft"}, InvalidArgumentError, "sampling must be one of 'gumbel'.*got 'soft'"),
        ({"sampling": None}, InvalidArgumentError, "sampling must be one of"),
        ({"init": ["ones"]}, InvalidArgumentError, "init must be one of 'ones'"),
        ({"eps": -0.1}, InvalidArgumentError, "eps must be finite and not negative; got -0.1"),
        ({"eps": math.nan}, InvalidArgumentError, "eps must be finite"),
        ({"eps": math.inf}, InvalidArgumentError, "eps must be finite"),
        ({"eps": "little"}, InvalidTypeError, "eps must be a number"),
        ({"seed": -1}, InvalidArgumentError, "seed must not be negative; got -1"),
        ({"seed": 1.0}, InvalidTypeError, "seed must be an integer; got 1.0"),
        ({"seed": True}, InvalidTypeError, "seed must be an integer"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        TaskAssignment(**{"num_tasks": 2, "num_branches": 2, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InvalidArgumentError, "rows must be given for sampling 'per_sample'"),
        ({"rows": -1}, InvalidArgumentError, "rows must not be negative; got -1"),
        ({"rows": 2.0}, InvalidTypeError, "rows must be an integer"),
        ({"rows": 2, "first_row": -1}, InvalidArgumentError, "first_row must not be negative; got -1"),
        ({"rows": 2, "first_row": None}, InvalidTypeError, "first_row must be an integer"),
    ],
)
def test_bad_rows(options, error, message):
    assignment = TaskAssignment(2, 2, sampling="per_sample")
    with pytest.raises(error, match=message):
        assignment.sample(1.0, **options)
    assert assignment.draws == 0


@pytest.mark.parametrize("labels", [[], [[0]], [0.5], [True], [-1], [2], ["a"], None, [None], torch.zeros(())])
def test_bad_labels(labels):
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match="labels must be"):
        TaskAssignment.fixed(labels, 2)


def test_repr():
    assert repr(TaskAssignment(4, 2)) == "TaskAssignment(4 tasks, 2 branches, sampling='gumbel')"


@pytest.mark.parametrize(("tasks", "branches"), [(1, 1), (1, 4), (9, 3), (40, 7), (2, 5)])
def test_imbalance_is_the_divergence_from_equal_shares(tasks, branches, generator):
    assignment = TaskAssignment(tasks, branches).double()
    with torch.no_grad():
        assignment.theta.copy_(3 * torch.randn(tasks, branches, generator=generator, dtype=torch.float64))
    q = assignment.theta.softmax(1).mean(0)
    torch.testing.assert_close(assignment.imbalance(), (q * (q * branches).log()).sum())
    theta = assignment.theta.detach().clone().requires_grad_()

    def of(values):
        return torch.func.functional_call(Imbalance(assignment), {"it.theta": values}, ())

    assert torch.autograd.gradcheck(of, (theta,))


class Imbalance(torch.nn.Module):
    def __init__(self, it):
        super().__init__()
        self.it = it

    def forward(self):
        return self.it.imbalance()


def test_imbalance_at_its_ends():
    even = TaskAssignment.fixed([0, 1, 2, 0, 1, 2], 3)
    lone = TaskAssignment(5, 3)
    with torch.no_grad():
        even.theta.mul_(1e4)
        lone.theta[:, 1] += 1e4
    assert even.imbalance().item() == pytest.approx(0, abs=1e-6)
    value = lone.imbalance()
    assert value.item() == pytest.approx(math.log(3))
    value.backward()
    assert lone.theta.grad.isfinite().all()
