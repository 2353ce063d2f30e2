"""Gram matrices against float64 products of centred features."""

import numpy as np
import pytest
import torch

from pymtg import _core
from pymtg._clustering import distances_from_gram
from pymtg._gram import gram_add, gram_matrix, new_gram
from pymtg.errors import InvalidArgumentError, InvalidTypeError


def exact_gram(X):
    Z = X.astype(np.longdouble)
    Z = Z - Z.mean(axis=0)
    return (Z @ Z.T).astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "dims"), [(1, 5), (2, 1), (3, 7), (8, 256), (23, 257), (24, 1), (25, 1025), (101, 613)])
def test_gram_matches_float64_in_both_layouts(n, dims, dtype):
    X = (np.random.default_rng(n).random((n, dims)) + 100).astype(dtype)
    expected = exact_gram(X)
    by_rows, by_columns = gram_matrix(X), new_gram(n)
    gram_add(by_columns, np.ascontiguousarray(X.T))
    scale = max(np.abs(expected).max(), 1e-300)
    assert np.abs(by_rows - expected).max() <= 1e-13 * scale * np.sqrt(dims) + 1e-20
    assert np.array_equal(by_rows, by_rows.T)
    assert np.abs(by_columns - expected).max() <= 1e-12 * scale + 1e-20


def test_blocks_add_up_and_strided_rows_are_read_in_place():
    X = np.random.default_rng(0).random((13, 900))
    whole, parts = gram_matrix(X), new_gram(13)
    for start in range(0, 900, 128):
        gram_add(parts, X[:, start : start + 128], points_as_rows=True)
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-12)
    from_tensor = new_gram(13)
    gram_add(from_tensor, torch.tensor(X).T)
    np.testing.assert_allclose(from_tensor, whole, rtol=1e-12, atol=1e-12)


def test_empty_block_changes_nothing():
    gram = np.eye(3)
    gram_add(gram, np.empty((0, 3), np.float32))
    assert np.array_equal(gram, np.eye(3))


def test_threads_give_the_same_bits():
    X = np.random.default_rng(0).random((61, 5000), dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        gram = new_gram(61)
        _core.gram_add(gram, X, True, threads)
        results.append(gram)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_equal_points_are_at_distance_zero_and_close_ones_keep_their_digits():
    rng = np.random.default_rng(3)
    X = rng.random((40, 20_000))
    X[7] = X[31]
    X[8] = X[30] + 1e-4 * rng.standard_normal(20_000)
    distances = distances_from_gram(gram_matrix(X))
    assert distances[7, 31] == 0
    exact = ((X[8] - X[30]) ** 2).sum()
    assert abs(distances[8, 30] / exact - 1) < 1e-7


@pytest.mark.parametrize(
    ("gram", "block", "error"),
    [
        (np.zeros((3, 3), np.float32), np.zeros((2, 3)), InvalidTypeError),
        (np.zeros((3, 4)), np.zeros((2, 3)), InvalidArgumentError),
        (np.zeros((3, 3)), np.zeros((3, 2)), InvalidArgumentError),
        (np.zeros((3, 3)), np.zeros(3), InvalidArgumentError),
        (np.zeros((3, 3)), np.zeros((2, 3), complex), InvalidTypeError),
    ],
)
def test_bad_input_is_refused(gram, block, error):
    with pytest.raises(error, match="must be"):
        gram_add(gram, block)
