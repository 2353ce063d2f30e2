"""FuzzyKMeans against plain float64 arithmetic and against scikit-learn's KMeans."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from pymtg import FuzzyKMeans, _core
from pymtg._gram import gram_matrix


def oracle_memberships(X, centers, fuzzifier):
    """Fuzzification as written, in extended precision."""
    X, centers = X.astype(np.longdouble), centers.astype(np.longdouble)
    squared = ((X[:, None] - centers[None]) ** 2).sum(axis=-1)
    result = np.zeros(squared.shape)
    for i, row in enumerate(squared):
        if row.min() == 0:
            result[i] = (row == 0) / (row == 0).sum()
        else:
            power = np.exp(-np.log(row / row.min()) / (fuzzifier - 1))
            result[i] = power / power.sum()
    return result


def means(X, labels):
    return np.stack([X[labels == k].astype(np.longdouble).mean(axis=0) for k in range(labels.max() + 1)])


def inertia(X, labels):
    return float(((X - means(X, labels)[labels]) ** 2).sum())


@pytest.mark.parametrize("algorithm", ["gram", "lloyd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "dims", "K"), [(2, 1, 2), (3, 1, 2), (5, 3, 5), (17, 1, 4), (31, 1009, 6), (97, 13, 7)])
def test_result_agrees_with_its_own_labels(n, dims, K, dtype, algorithm):
    X = (np.random.default_rng(n).normal(size=(n, dims)) + 30).astype(dtype)
    model = FuzzyKMeans(K, algorithm=algorithm, random_state=0, tol=0).fit(X)
    assert sorted(set(model.labels_)) == list(range(K))
    assert np.array_equal(
        np.unique(model.labels_, return_index=True)[1], np.sort(np.unique(model.labels_, return_index=True)[1])
    )
    np.testing.assert_allclose(model.cluster_centers_, means(X, model.labels_).astype(float), rtol=1e-12)
    assert model.inertia_ == pytest.approx(inertia(X, model.labels_), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(model.memberships_, oracle_memberships(X, means(X, model.labels_), 1.07), atol=1e-6)
    np.testing.assert_allclose(model.memberships_.sum(axis=1), 1, atol=1e-12)
    assert np.array_equal(model.predict(X), model.labels_)
    np.testing.assert_allclose(model.predict_memberships(X), model.memberships_, atol=1e-6)


@pytest.mark.parametrize("fuzzifier", [1.01, 1.07, 1.5, 2, 4])
def test_nearly_identical_tasks_keep_six_digits(fuzzifier):
    """Pairs of tasks 1e-4 apart in every feature, in clusters of their own, in D >> n."""
    rng = np.random.default_rng(1)
    X = np.repeat(rng.random((6, 30_000)), 4, axis=0)
    X += 1e-4 * rng.standard_normal(X.shape)
    for K in (6, 9):  # 9 clusters must split some of the groups, whose tasks then lie about as far from two centroids
        model = FuzzyKMeans(K, fuzzifier=fuzzifier, random_state=0).fit(X)
        expected = oracle_memberships(X, means(X, model.labels_), fuzzifier)
        np.testing.assert_allclose(model.memberships_, expected, atol=1e-6)


def test_gram_and_features_give_the_same():
    X = np.random.default_rng(5).random((40, 300))
    by_features = FuzzyKMeans(5, random_state=3).fit(X)
    raw = FuzzyKMeans(5, random_state=3).fit_gram(torch.tensor(X @ X.T))
    centred = FuzzyKMeans(5, random_state=3).fit_gram(gram_matrix(X))
    for model in (raw, centred):
        assert np.array_equal(model.labels_, by_features.labels_)
        np.testing.assert_allclose(model.memberships_, by_features.memberships_, atol=1e-6)
        np.testing.assert_allclose(model.centroid_coefficients_ @ X, by_features.cluster_centers_, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "dims", "K"), [(60, 4000, 8), (150, 500, 12)])
def test_inertia_is_no_higher_than_scikit_learns(n, dims, K, seed):
    rng = np.random.default_rng(seed)
    X = rng.random((n, dims)) + rng.random((6, dims))[rng.integers(0, 6, n)]
    ours = FuzzyKMeans(K, random_state=seed).fit(X)
    theirs = KMeans(K, n_init=10, random_state=seed).fit(X)
    assert inertia(X, ours.labels_) <= theirs.inertia_ * (1 + 1e-12)


def test_single_point_moves_never_raise_the_inertia():
    X = np.random.default_rng(0).random((70, 200))
    gram = gram_matrix(X)
    distances = _core.squared_distances(gram, 1)
    for seed in range(20):
        plain = _core.kmeans_distances(distances, 9, 1, 300, seed, False, 1)
        moved = _core.kmeans_distances(distances, 9, 1, 300, seed, True, 1)
        assert moved[1] <= plain[1] * (1 + 1e-12)


@pytest.mark.parametrize("n", [1000, 20_001])
def test_grid_is_exact(n):
    rng = np.random.default_rng(2)
    X = np.concatenate([rng.normal(c, 0.3, (n // 4, 2)) for c in ((0, 0), (1, 2), (3, 0), (9, 9))]).astype(np.float32)
    model = FuzzyKMeans(5, mode="kmeans", algorithm="grid", n_init=2, tol=0, random_state=0).fit(X)
    squared = ((X[:, None].astype(float) - model.cluster_centers_) ** 2).sum(-1)
    assert np.array_equal(squared.argmin(axis=1), model.labels_)
    assert model.inertia_ == pytest.approx(squared.min(axis=1).sum(), rel=1e-10)
    np.testing.assert_allclose(model.cluster_centers_, means(X, model.labels_).astype(float), atol=1e-9)


def test_grid_with_a_far_outlier_and_with_points_on_a_line():
    rng = np.random.default_rng(2)
    X = np.concatenate([rng.normal(size=(3000, 2)), [[1e9, 1e9]]])
    model = FuzzyKMeans(3, mode="kmeans", algorithm="grid", n_init=1, random_state=0).fit(X)
    assert sorted(np.bincount(model.labels_))[0] == 1
    assert len(set(model.labels_)) == 3
    line = np.stack([rng.random(5000), np.zeros(5000)], axis=1)
    assert len(set(FuzzyKMeans(4, algorithm="grid", n_init=1, random_state=0).fit(line).labels_)) == 4


@pytest.mark.parametrize("algorithm", ["gram", "lloyd"])
def test_fuzzy_c_means_is_a_fixed_point(algorithm):
    X = make_blobs(90, 5, centers=4, random_state=0)[0]
    model = FuzzyKMeans(
        4, mode="fuzzy-cmeans", fuzzifier=2, tol=1e-12, max_iter=2000, algorithm=algorithm, random_state=0
    )
    U = model.fit(X).memberships_
    weights = U**2
    centers = (weights.T @ X) / weights.sum(axis=0)[:, None]
    np.testing.assert_allclose(centers, model.cluster_centers_, atol=1e-8)
    np.testing.assert_allclose(oracle_memberships(X, centers, 2), U, atol=1e-8)
    squared = ((X[:, None] - centers) ** 2).sum(-1)
    assert model.inertia_ == pytest.approx((weights * squared).sum(), rel=1e-8)


def test_fuzzy_c_means_from_gram_and_points_agree():
    X = make_blobs(60, 3, centers=3, random_state=4)[0]
    settings_ = {"mode": "fuzzy-cmeans", "fuzzifier": 1.8, "tol": 1e-10, "random_state": 0}
    gram = FuzzyKMeans(3, algorithm="gram", **settings_).fit(X)
    lloyd = FuzzyKMeans(3, algorithm="lloyd", **settings_).fit(X)
    assert gram.inertia_ == pytest.approx(lloyd.inertia_, rel=1e-7)
    np.testing.assert_allclose(gram.memberships_, lloyd.memberships_, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["gram", "lloyd"])
@pytest.mark.parametrize(("seed", "K", "fuzzifier"), [(1, 4, 2), (2, 3, 3), (4, 4, 10)])  # one or two lose all points
def test_fuzzy_c_means_numbers_clusters_by_their_first_point(algorithm, seed, K, fuzzifier):
    X = np.random.default_rng(seed).normal(size=(9, 7))
    model = FuzzyKMeans(K, mode="fuzzy-cmeans", fuzzifier=fuzzifier, algorithm=algorithm, random_state=0).fit(X)
    present, first = np.unique(model.labels_, return_index=True)
    assert present.tolist() == list(range(len(present)))
    assert first.tolist() == sorted(first)
    np.testing.assert_array_equal(model.labels_, model.memberships_.argmax(axis=1))
    np.testing.assert_allclose(oracle_memberships(X, model.cluster_centers_, fuzzifier), model.memberships_, atol=1e-8)
    np.testing.assert_array_equal(model.predict(X), model.labels_)


def test_points_mode_counts_shares():
    rng = np.random.default_rng(0)
    blobs = np.array([[0.1, 0.1], [0.9, 0.1], [0.5, 0.5]])
    which = np.repeat([[0] * 60 + [1] * 40, [1] * 100, [2] * 75 + [0] * 25], 1, axis=0)
    X = blobs[which] + 0.01 * rng.standard_normal((3, 100, 2))
    model = FuzzyKMeans(3, mode="points", random_state=0).fit(X.reshape(3, -1))
    np.testing.assert_allclose(model.memberships_, [[0.6, 0.4, 0], [0, 1, 0], [0.25, 0, 0.75]])
    assert model.labels_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(model.cluster_centers_, blobs, atol=0.01)
    again = FuzzyKMeans(3, mode="points", random_state=0).fit(X)
    np.testing.assert_array_equal(again.memberships_, model.memberships_)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    assert model.transform(X).shape == (3, 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-100, 100), st.sampled_from([0.01, 1.0, 300.0]))
def test_memberships_do_not_depend_on_order_shift_or_scale(seed, shift, scale):
    rng = np.random.default_rng(seed)
    X = 5 * rng.random((4, 60))[rng.integers(0, 4, 25)] + rng.random((25, 60))
    K = len(np.unique(FuzzyKMeans(3, random_state=0).fit(X).labels_))
    base = FuzzyKMeans(K, n_init=30, random_state=0).fit(X)
    moved = FuzzyKMeans(K, n_init=30, random_state=0).fit(X * scale + shift)
    order = rng.permutation(25)
    shuffled = FuzzyKMeans(K, n_init=30, random_state=1).fit(X[order])
    np.testing.assert_allclose(moved.memberships_, base.memberships_, atol=1e-6)
    name = {int(a): int(b) for a, b in zip(base.labels_[order], shuffled.labels_, strict=True)}
    assert [name[int(k)] for k in base.labels_[order]] == shuffled.labels_.tolist()
    columns = [name[k] for k in range(K)]
    np.testing.assert_allclose(shuffled.memberships_[:, columns], base.memberships_[order], atol=1e-6)


@pytest.mark.parametrize("shape", [(50, 400), (700, 5), (30_000, 2)])
@pytest.mark.parametrize("mode", ["kmeans-fuzzified", "fuzzy-cmeans"])
def test_same_seed_same_bits_with_any_number_of_threads(shape, mode):
    X = np.random.default_rng(0).random(shape)
    present = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(FuzzyKMeans(6, mode=mode, n_init=3, max_iter=30, random_state=7).fit(X))
    finally:
        torch.set_num_threads(present)
    for other in results[1:]:
        assert np.array_equal(results[0].memberships_, other.memberships_)
        assert np.array_equal(results[0].cluster_centers_, other.cluster_centers_)
        assert results[0].inertia_ == other.inertia_


_LABELS = """
import numpy as np
from pymtg import FuzzyKMeans, _core
rng = np.random.default_rng(0)
out = [_core.isa()]
for shape, K in (((40, 3000), 5), ((600, 7), 4), ((30000, 2), 3)):
    centers = 3 * rng.random((K, shape[1]))
    X = centers[rng.integers(0, K, shape[0])] + 0.2 * rng.standard_normal(shape)
    out.append(hash(FuzzyKMeans(K, n_init=3, random_state=0).fit(X).labels_.tobytes()))
print(*out)
"""


def test_every_instruction_set_gives_the_same_labels():
    outputs = {}
    for isa in ("base", "avx2", "avx512"):
        environment = {**os.environ, "PYMTG_ISA": isa, "PYTHONHASHSEED": "0"}
        done = subprocess.run([sys.executable, "-c", _LABELS], env=environment, capture_output=True, text=True)
        if done.returncode != 0 and "goes no further" in done.stderr:
            continue
        assert done.returncode == 0, done.stderr
        used, *labels = done.stdout.split()
        assert used == isa
        outputs[isa] = labels
    assert len(set(map(tuple, outputs.values()))) == 1


def test_auto_finds_the_clusters_and_reports_the_curve():
    X = make_blobs(120, 6, centers=5, cluster_std=0.4, random_state=2)[0]
    for algorithm in ("gram", "lloyd"):
        model = FuzzyKMeans("auto", algorithm=algorithm, random_state=0, cluster_range=(2, 8)).fit(X)
        assert model.n_clusters_ == 5
        assert list(model.silhouette_scores_) == list(range(2, 9))
        assert model.silhouette_scores_[5] == pytest.approx(silhouette_score(X, model.labels_), abs=1e-6)


@pytest.mark.parametrize("algorithm", ["gram", "lloyd", "grid"])
def test_fewer_distinct_points_than_clusters_warns(algorithm):
    X = np.repeat([[0.0, 1.0], [5.0, 5.0]], 6, axis=0)
    with pytest.warns(
        ConvergenceWarning, match=r"Number of distinct clusters \(2\) found smaller than n_clusters \(4\)"
    ):
        model = FuzzyKMeans(4, algorithm=algorithm, random_state=0).fit(X)
    assert model.labels_.tolist() == [0] * 6 + [1] * 6
    assert model.cluster_centers_.shape == (4, 2)
    np.testing.assert_allclose(model.memberships_[0], [0.5, 0, 0.5, 0])
    assert model.inertia_ == 0


@pytest.mark.parametrize("mode", ["kmeans", "kmeans-fuzzified", "fuzzy-cmeans"])
@pytest.mark.parametrize("algorithm", ["gram", "lloyd"])
def test_no_cluster_is_empty_among_duplicates(mode, algorithm):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (200, 2)).astype(float)
    model = FuzzyKMeans(9, mode=mode, algorithm=algorithm, random_state=0).fit(X)
    assert len(set(model.labels_)) == 9
    assert model.inertia_ == pytest.approx(0, abs=1e-12)
