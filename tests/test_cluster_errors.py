"""What FuzzyKMeans refuses, and that a fitted estimator stays as it was."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from pymtg import FuzzyKMeans, cluster_tasks
from pymtg.errors import InvalidArgumentError, InvalidTypeError

X = np.random.default_rng(0).random((12, 4))


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"n_clusters": 0}, InvalidArgumentError, "n_clusters must be at least 1; got 0"),
        ({"n_clusters": 13}, InvalidArgumentError, "n_clusters must be at most .* n_clusters=13, n_samples=12"),
        ({"n_clusters": 2.0}, InvalidTypeError, "n_clusters must be an integer; got 2.0"),
        ({"n_clusters": "many"}, InvalidArgumentError, "'auto'; got 'many'"),
        ({"fuzzifier": 1}, InvalidArgumentError, "fuzzifier must be above 1 and finite; got 1"),
        ({"fuzzifier": 0.5}, InvalidArgumentError, "fuzzifier"),
        ({"fuzzifier": np.inf}, InvalidArgumentError, "fuzzifier"),
        ({"fuzzifier": "2"}, InvalidTypeError, "fuzzifier must be a number"),
        ({"mode": "soft"}, InvalidArgumentError, "mode must be one of .*; got 'soft'"),
        ({"algorithm": "elkan"}, InvalidArgumentError, "algorithm must be one of"),
        ({"algorithm": "grid"}, InvalidArgumentError, "2 dimensions; got 4"),
        ({"n_init": 0}, InvalidArgumentError, "n_init"),
        ({"max_iter": 1.5}, InvalidTypeError, "max_iter"),
        ({"tol": -1}, InvalidArgumentError, "tol"),
        ({"random_state": -1}, InvalidArgumentError, r"random_state must be in 0\.\.2\*\*32-1; got -1"),
        ({"random_state": 2**32}, InvalidArgumentError, "random_state must be in .*; got 4294967296"),
        ({"random_state": np.random.default_rng(0)}, InvalidTypeError, "random_state must be an integer, .* or None"),
        ({"random_state": 1.0}, InvalidTypeError, "random_state must be an integer, .* got 1.0 of type float"),
        ({"random_state": True}, InvalidTypeError, "random_state must be an integer"),
        ({"n_clusters": "auto", "cluster_range": (1, 5)}, InvalidArgumentError, "cluster_range"),
        ({"n_clusters": "auto", "cluster_range": 5}, InvalidTypeError, "cluster_range"),
    ],
)
def test_bad_parameters(parameters, error, match):
    model = FuzzyKMeans(3, random_state=0).fit(X)
    before = {**vars(model)}
    with pytest.raises(error, match=match):
        model.set_params(**parameters).fit(X)
    after = vars(model)
    assert all(after[name] is before[name] for name in before if name.endswith("_"))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.where(X > 0.9, np.nan, X), "NaN"),
        (np.where(X > 0.9, np.inf, X), "infinity"),
        (X[0], "2D array"),
        (X[:1], "1 sample"),
        (X[:, :0], "0 feature"),
        (X[None], "dim 3"),
    ],
)
def test_bad_features(bad, match):
    model = FuzzyKMeans(3, random_state=0).fit(X)
    before = {**vars(model)}
    with pytest.raises(InvalidArgumentError, match=match):
        model.fit(bad)
    assert vars(model) == before


def test_bad_task_points():
    model = FuzzyKMeans(2, mode="points")
    with pytest.raises(InvalidArgumentError, match="even number of columns"):
        model.fit(X[:, :3])
    with pytest.raises(InvalidArgumentError, match=r"\[tasks, points, 2\]"):
        model.fit(np.zeros((3, 4, 3)))


@pytest.mark.parametrize(
    ("gram", "match"),
    [
        (np.zeros((3, 4)), "square"),
        (np.ones((1, 1)), "at least 2"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
        (np.array([[1.0, 0.5], [0.1, 1.0]]), "symmetric"),
        (-np.eye(3), "negative diagonal"),
        (np.eye(2), "n_clusters"),
    ],
)
def test_bad_gram_matrices(gram, match):
    with pytest.raises(InvalidArgumentError, match=match):
        FuzzyKMeans(3).fit_gram(gram)


def test_what_a_gram_matrix_cannot_do():
    model = FuzzyKMeans(3, random_state=0).fit(X)
    model.fit_gram(X @ X.T)
    assert not hasattr(model, "cluster_centers_")
    assert not hasattr(model, "n_features_in_")
    for call in (model.predict, model.transform, model.predict_memberships, model.score):
        with pytest.raises(InvalidArgumentError, match="fitted from a Gram matrix"):
            call(X)
    with pytest.raises(InvalidArgumentError, match="points"):
        FuzzyKMeans(3, mode="points").fit_gram(X @ X.T)
    with pytest.raises(InvalidArgumentError, match="algorithm"):
        FuzzyKMeans(3, algorithm="lloyd").fit_gram(X @ X.T)


def test_the_error_and_the_warning_of_too_few_points_survive_copying():
    model = FuzzyKMeans("auto")
    with pytest.raises(InvalidArgumentError, match="more distinct points") as error:
        model.fit(np.ones((4, 2)))
    with pytest.warns(ConvergenceWarning, match=r"clusters \(1\) found smaller") as warned:
        model.set_params(n_clusters=2).fit(np.ones((4, 2)))
    for one in (error.value, warned[0].message):
        again = pickle.loads(pickle.dumps(one))  # as joblib does
        assert (type(again), str(again), again.found) == (type(one), str(one), 1)


@pytest.mark.parametrize("fit", [lambda model, X: model.fit(X), lambda model, X: model.fit_gram(X @ X.T)])
def test_the_warning_of_too_few_points_is_that_of_the_line_that_fits(fit):
    with pytest.warns(ConvergenceWarning, match="found smaller") as warned:
        fit(FuzzyKMeans(2), np.ones((4, 2)))
    assert warned[0].filename == __file__


def test_auto_needs_distinct_points():
    with pytest.raises(InvalidArgumentError, match="distinct"):
        FuzzyKMeans("auto").fit(np.ones((5, 3)))


def test_a_sparse_gram_matrix():
    with pytest.raises(InvalidTypeError, match=r"must be an array or a dense tensor; got a tensor of torch.sparse_coo"):
        cluster_tasks(torch.eye(3).to_sparse(), 2)
