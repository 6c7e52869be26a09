"""Values of closed columns that depend on the global batch: their means, or the values of other rows.

Shape letters: B rows of the batch on this rank, D columns.
"""

from functools import partial

import torch

from ham_dist.config.base import ClosedValue
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded
from ham_dist.embedding.mask import ClosedColumns


def closed_columns(value: ClosedValue, seed: int) -> ClosedColumns | None:
    """Returns the function that computes the values of closed columns; None for zeros.

    The function is a collective. Its result for a global batch does not depend on the number of ranks.

    Args:
        value: Kind of value.
        seed: Seed of the permutation for "shuffled"; the same on every rank.
    """
    return {"zero": None, "mean": mean_of_batch, "shuffled": partial(shuffled_in_batch, seed=seed)}[value]


def mean_of_batch(columns: torch.Tensor) -> torch.Tensor:
    """Returns the mean of each column over the global batch, (D,). A collective.

    The sum is in float64 and rounded to float32, so that it does not depend on the number of ranks.

    Args:
        columns: (B, D).
    """
    sums = columns.detach().sum(dim=0, dtype=torch.float64)
    sums = process_group.sum_over_ranks(torch.cat([sums, sums.new_full((1,), len(columns))]))
    return rounded(sums[:-1] / sums[-1], FLOAT32_BITS).to(columns.dtype)


def shuffled_in_batch(columns: torch.Tensor, seed: int) -> torch.Tensor:
    """Returns the columns of other rows, (B, D): those of the global batch in a random order. A collective.

    The order depends only on the seed and the number of rows, and is the same for all columns. Every rank
    gathers the columns of the whole global batch.

    Args:
        columns: (B, D).
        seed: The same on every rank.
    """
    counts = process_group.gather_objects(len(columns))
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed))
    first = sum(counts[: process_group.rank()])
    rows = order[first : first + len(columns)].to(columns.device)
    return gather_rows(columns.detach()).index_select(0, rows)
