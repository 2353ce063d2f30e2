"""The scikit-learn contract of FuzzyKMeans."""

import warnings

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pymtg import FuzzyKMeans

ESTIMATORS = [
    FuzzyKMeans(n_init=2),
    FuzzyKMeans(3, mode="kmeans", algorithm="lloyd", n_init=2),
    FuzzyKMeans(3, mode="fuzzy-cmeans", fuzzifier=2, n_init=2),
    FuzzyKMeans(3, mode="fuzzy-cmeans", algorithm="lloyd", n_init=2),
    FuzzyKMeans("auto", n_init=2, cluster_range=(2, 4)),
]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_contract(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some checks raise those of scikit-learn's own
        check(estimator)
