"""The scikit-learn contract of FuzzyKMeans."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from pymtg import FuzzyKMeans

ESTIMATORS = [
    FuzzyKMeans(n_init=2),
    FuzzyKMeans(3, mode="kmeans", algorithm="lloyd", n_init=2),
    FuzzyKMeans(3, mode="fuzzy-cmeans", fuzzifier=2, n_init=2),
    FuzzyKMeans(3, mode="fuzzy-cmeans", algorithm="lloyd", n_init=2),
    FuzzyKMeans("auto", n_init=2, cluster_range=(2, 4)),
]
CHECKS = parametrize_with_checks(ESTIMATORS).mark  # with an iterator in scikit-learn 1.7


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learn_contract(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some checks raise those of scikit-learn's own
        check(estimator)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)) + 9 * rng.integers(3, size=(60, 1))


@pytest.mark.parametrize("mode", ["kmeans", "kmeans-fuzzified", "fuzzy-cmeans", "points"])
@pytest.mark.parametrize("algorithm", ["gram", "lloyd"])
def test_the_score_of_the_fitted_rows_is_minus_their_inertia(mode, algorithm, rows):
    model = FuzzyKMeans(3, mode=mode, algorithm=algorithm, fuzzifier=2, tol=1e-12, random_state=0).fit(rows)
    np.testing.assert_allclose(model.score(rows), -model.inertia_, rtol=1e-6)


@pytest.mark.parametrize("mode", ["kmeans", "kmeans-fuzzified"])
def test_the_score_of_other_rows_is_that_of_kmeans(mode, rows):
    model = FuzzyKMeans(3, mode=mode, random_state=0).fit(rows[:40])
    theirs = KMeans(3, init=model.cluster_centers_, n_init=1, max_iter=1).fit(rows[:40])
    np.testing.assert_allclose(theirs.cluster_centers_, model.cluster_centers_)
    np.testing.assert_allclose(model.score(rows[40:]), theirs.score(rows[40:]))
    assert isinstance(model.score(rows[40:].astype(np.float32)), float)


def test_the_score_of_other_rows_for_fuzzy_cmeans_and_points(rows):
    model = FuzzyKMeans(3, mode="fuzzy-cmeans", fuzzifier=1.5, random_state=0).fit(rows[:40])
    squared = ((rows[40:, None] - model.cluster_centers_) ** 2).sum(-1)
    memberships = 1 / ((squared[:, :, None] / squared[:, None, :]) ** 2).sum(-1)  # 1 / (m - 1) = 2
    np.testing.assert_allclose(model.score(rows[40:]), -(memberships**1.5 * squared).sum())
    model = FuzzyKMeans(3, mode="points", random_state=0).fit(rows[:40])
    points = rows[40:].reshape(-1, 2)
    nearest = ((points[:, None] - model.cluster_centers_) ** 2).sum(-1).min(-1)
    np.testing.assert_allclose(model.score(rows[40:]), -nearest.sum())
    np.testing.assert_allclose(model.score(rows[40:].reshape(20, 2, 2)), -nearest.sum())


def test_a_search_over_numbers_of_clusters(rows):
    search = GridSearchCV(FuzzyKMeans(random_state=0), {"n_clusters": [2, 3]}).fit(rows)
    assert search.best_params_ == {"n_clusters": 3}
