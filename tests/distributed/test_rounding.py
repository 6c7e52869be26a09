import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.distributed.rounding import FLOAT32_BITS, GRADIENT_BITS, rounded

numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30, allow_subnormal=False)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_float32_bits_are_those_of_a_float32(values: list[float]) -> None:
    exact = torch.tensor([value for value in values if abs(value) > 1e-30 or value == 0.0] or [0.0], dtype=torch.float64)
    assert torch.equal(rounded(exact, FLOAT32_BITS), exact.float().double())


@given(numbers)
def test_error_is_at_most_half_of_the_last_bit_kept(value: float) -> None:
    (nearest,) = rounded(torch.tensor([value], dtype=torch.float64), GRADIENT_BITS).tolist()
    assert abs(nearest - value) <= 2.0**-GRADIENT_BITS * abs(value)


def test_order_of_a_sum_does_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(2000, 500, generator=generator, dtype=torch.float64)
    orders = [terms[torch.randperm(len(terms), generator=generator)] for _ in range(5)]
    sums = [order.sum(0) for order in orders]
    assert any(not torch.equal(sums[0], other) for other in sums[1:]), "the test would show nothing"
    assert all(torch.equal(rounded(sums[0], GRADIENT_BITS), rounded(other, GRADIENT_BITS)) for other in sums[1:])


def test_the_gradient_passes() -> None:
    values = torch.tensor([1.23456789, -2.0], dtype=torch.float64, requires_grad=True)
    rounded(values, 8).square().sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([2 * 1.234375, -4.0], rel=2**-7)
