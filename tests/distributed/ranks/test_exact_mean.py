"""The bits of a mean do not depend on the order of rows, the split into parts or the number of ranks."""

import math
from fractions import Fraction
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.exact_mean import mean_over_ranks
from tests.support.ranks import run_on_ranks

CPU = torch.device("cpu")
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def mean_of(*parts: list[float]) -> float:
    return mean_over_ranks([torch.tensor(part, dtype=torch.float64) for part in parts], CPU)


@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_it_is_the_rounded_mean_in_any_order_and_any_parts(
    values: list[float], cut: int, random: Random
) -> None:
    expected = float(sum(map(Fraction, values)) / len(values))
    assert mean_of(values) == expected
    random.shuffle(values)
    assert mean_of(values[:cut], values[cut:]) == expected


def test_plain_addition_would_depend_on_the_order() -> None:
    # By `+`: from Python 3.12 on, `sum` of floats carries the rounding errors along.
    assert 1e16 + 1.0 - 1e16 != 1e16 - 1e16 + 1.0
    assert mean_of([1e16, 1.0, -1e16]) == mean_of([1e16, -1e16, 1.0]) == 1 / 3


def test_values_without_a_finite_mean() -> None:
    assert math.isnan(mean_of())
    assert math.isnan(mean_of([1.0, math.nan]))
    assert math.isnan(mean_of([math.inf], [-math.inf, 1.0]))
    assert mean_of([1.0, math.inf]) == math.inf
    assert mean_of([-math.inf, 1.0]) == -math.inf


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1_000, generator=generator, dtype=torch.float64).exp() ** 5


def means_of_parts(edges: list[int], order: list[int]) -> float:
    """Returns the mean of `rows` cut at `edges`; rank r has part `order[r]`."""
    number = order[process_group.rank()]
    return mean_over_ranks(rows()[edges[number] : edges[number + 1]].split(64), CPU)


@pytest.mark.parametrize(
    ("edges", "order"),
    [
        ([0, 1_000], [0]),
        ([0, 400, 1_000], [0, 1]),
        ([0, 400, 1_000], [1, 0]),
        ([0, 16, 16, 1_000], [0, 1, 2]),
        ([0, 300, 600, 1_000], [2, 0, 1]),
    ],
    ids=str,
)
def test_the_mean_does_not_depend_on_the_number_or_order_of_ranks(edges: list[int], order: list[int]) -> None:
    expected = float(sum(map(Fraction, rows().tolist())) / len(rows()))
    assert run_on_ranks(len(order), means_of_parts, edges, order) == [expected] * len(order)
