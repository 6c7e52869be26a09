import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, GRADIENT_BITS, rounded

numbers = st.floats(
    allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30, allow_subnormal=False
)


def nearest(value: float, bits: int) -> float:
    """Returns `value` rounded to `bits` significant bits by Python, whose round() takes ties to even."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)


@given(st.lists(numbers, min_size=1, max_size=20), st.sampled_from([8, GRADIENT_BITS, FLOAT32_BITS]))
def test_only_the_first_bits_are_kept(values: list[float], bits: int) -> None:
    exact = [value for value in values if abs(value) > 1e-30 or value == 0.0]
    assert rounded(torch.tensor(exact, dtype=torch.float64), bits).tolist() == [
        nearest(value, bits) for value in exact
    ]


@pytest.mark.parametrize("bits", [GRADIENT_BITS, FLOAT32_BITS])
def test_halves_go_to_even(bits: int) -> None:
    last = 2.0 ** (1 - bits)
    halves = torch.tensor([1.0 + 0.5 * last, 1.0 + 1.5 * last, -1.0 - 2.5 * last], dtype=torch.float64)
    assert rounded(halves, bits).tolist() == [1.0, 1.0 + 2 * last, -1.0 - 2 * last]


@given(numbers)
def test_error_is_at_most_half_of_the_last_bit_kept(value: float) -> None:
    (nearest,) = rounded(torch.tensor([value], dtype=torch.float64), GRADIENT_BITS).tolist()
    assert abs(nearest - value) <= 2.0**-GRADIENT_BITS * abs(value)


def test_a_rounded_sum_does_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(2000, 500, generator=generator, dtype=torch.float64)
    orders = [terms[torch.randperm(len(terms), generator=generator)] for _ in range(5)]
    sums = [order.sum(0) for order in orders]
    assert any(not torch.equal(sums[0], other) for other in sums[1:]), "the sums must differ before rounding"
    assert all(
        torch.equal(rounded(sums[0], GRADIENT_BITS), rounded(other, GRADIENT_BITS)) for other in sums[1:]
    )
