"""Sums over ranks have the same bits on every rank: small and large, blocking and asynchronous."""

import pytest
import torch

from ham_dist.distributed.ranks import process_group
from tests.support.ranks import run_on_ranks

SHAPES = [(0,), (), (1,), (3, 5), (1 << 17,), ((1 << 17) + 1,)]
"""With 8 bytes per number, the last two have 1 MiB and more."""


def values_of(rank: int, number: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * number + rank)
    return torch.randn(SHAPES[number], generator=generator, dtype=torch.float64).mul(1000).to(dtype)


def sums(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Returns for each shape a blocking sum, an asynchronous sum, and a sum of a strided tensor."""
    results = []
    for number in range(len(SHAPES)):
        values = values_of(process_group.rank(), number, dtype)
        waited, started, strided = (
            values.clone(),
            values.clone(),
            torch.stack([values, values], dim=-1)[..., 0],
        )
        assert process_group.sum_over_ranks(waited) is waited
        results.append(
            (waited, process_group.starting_sum(started).wait(), process_group.sum_over_ranks(strided))
        )
        assert torch.equal(started, waited)
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_sums_are_those_of_all_ranks_and_alike_on_each(ranks: int, dtype: torch.dtype) -> None:
    """Sums agree to the last digits of the type, since an all-reduce may add in another order."""
    relative, absolute = (1e-6, 1e-3) if dtype == torch.float32 else (1e-12, 1e-9)
    of_ranks = run_on_ranks(ranks, sums, dtype)
    for number in range(len(SHAPES)):
        expected = torch.stack([values_of(rank, number, dtype) for rank in range(ranks)]).sum(dim=0)
        for of_rank in of_ranks:
            for found, first in zip(of_rank[number], of_ranks[0][number], strict=True):
                assert found.shape == expected.shape
                assert torch.equal(found, first)
                torch.testing.assert_close(found, expected, rtol=relative, atol=absolute)


def test_a_small_sum_is_in_the_order_of_the_ranks() -> None:
    """1e16 + 1 - 1e16 is 0 in float64, and 1e16 - 1e16 + 1 is 1."""
    assert [float(total) for total in run_on_ranks(3, large_small_large)] == [0.0] * 3


def large_small_large() -> torch.Tensor:
    return process_group.sum_over_ranks(
        torch.tensor([1e16, 1.0, -1e16][process_group.rank()], dtype=torch.float64)
    )
