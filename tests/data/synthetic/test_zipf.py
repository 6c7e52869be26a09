"""Rejection-inversion against the probabilities that it stands for."""

import numpy as np
import pytest

from ham_dist.data.synthetic.zipf import Zipf

ROWS = 200_000


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 1.05, 2.5])
@pytest.mark.parametrize("count", [1, 2, 9, 5_000, 40_000_000])
def test_values_come_as_often_as_zipf_says(count: int, exponent: float) -> None:
    zipf = Zipf.over(count, exponent)
    random = np.random.default_rng(count)
    values = zipf.draw(lambda places: random.random(len(places)), ROWS)
    assert values.dtype == np.int32
    assert 1 <= values.min() <= values.max() <= count
    cells = 50
    expected = ROWS * zipf.chances(cells)
    found = np.bincount((values - 1) % cells, minlength=len(expected))
    chi_square = ((found - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) <= 5 * np.sqrt(2 * freedom)


def test_chances_add_up_values_that_are_a_limit_apart() -> None:
    weights = np.arange(1, 8, dtype=np.float64) ** -0.7
    np.testing.assert_allclose(Zipf.over(7, 0.7).chances(100), weights / weights.sum())
    folded = np.array(
        [weights[0] + weights[3] + weights[6], weights[1] + weights[4], weights[2] + weights[5]]
    )
    np.testing.assert_allclose(Zipf.over(7, 0.7).chances(3), folded / weights.sum())


def test_several_distributions_at_once_are_each_of_them() -> None:
    counts = np.array([[3], [1_000_000]])
    uniform = np.random.default_rng(0).random((2, 1000))
    together = Zipf.over(counts, 1.2)
    values, kept = together.invert(uniform)
    for field, count in enumerate(counts[:, 0]):
        alone, alone_kept = Zipf.over(count, 1.2).invert(uniform[field])
        np.testing.assert_array_equal(values[field], alone)
        np.testing.assert_array_equal(kept[field], alone_kept)
    assert kept.mean() > 0.98
    places = np.array([1, 0, 1])
    np.testing.assert_array_equal(together.take((places, 0)).invert(uniform[places, 0])[0], values[places, 0])


def test_a_tail_too_thin_for_float64_ends_at_the_last_value() -> None:
    zipf = Zipf.over(40_000_000, 5.0)
    values, kept = zipf.invert(np.array([0.0, 1e-16, 0.999]))
    assert values.max() == 40_000_000
    assert kept.all()
