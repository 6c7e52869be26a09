"""A mean over the rows of all ranks whose bits depend neither on the order of the rows nor on the number of
ranks."""

import math
from collections.abc import Iterable
from fractions import Fraction

import torch

from ham_dist.distributed.ranks import process_group

MANTISSA_BITS = 53
"""Significant bits of a float64, including the implicit first bit."""
LOW_BITS = 27
"""A mantissa is summed in two parts of at most this many bits, which up to 2^36 rows do not overflow."""
SMALLEST_EXPONENT = -1073
"""Smallest exponent that `frexp` returns, for a fraction from 0.5 to 1; the largest is 1024."""
EXPONENTS = 1024 - SMALLEST_EXPONENT + 1


def mean_over_ranks(parts: Iterable[torch.Tensor], device: torch.device) -> float:
    """Returns the correctly rounded mean of the numbers of all ranks. A collective.

    A float64 is an integer mantissa times a power of two. Mantissas are summed by exponent, as integers,
    which is exact in any order; only the final result is rounded. So the result does not depend on the number
    of ranks or on the order of additions in a kernel, and no rows are exchanged.

    Args:
        parts: Tensors (n,) of this rank; may be empty.
        device: The device of the tensors.
    Returns:
        The same mean on every rank. NaN or an infinity if ordinary addition gives one; NaN if there are no
        numbers.
    """
    sums = torch.zeros(2, EXPONENTS, dtype=torch.int64, device=device)
    # How many numbers there are, and how many of them are NaN, infinity and minus infinity.
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    for part in parts:
        values = part.detach().double()
        kinds = (values.isnan(), values == torch.inf, values == -torch.inf)
        counts += torch.stack([torch.tensor(len(values), device=device), *(kind.sum() for kind in kinds)])
        fraction, exponent = torch.frexp(torch.where(values.isfinite(), values, 0.0))
        mantissa = (fraction * 2.0**MANTISSA_BITS).long()
        bins = exponent.long() - SMALLEST_EXPONENT
        sums[0].index_add_(0, bins, mantissa >> LOW_BITS)
        sums[1].index_add_(0, bins, mantissa & ((1 << LOW_BITS) - 1))
    flat = process_group.sum_over_ranks(torch.cat([counts, sums.flatten()])).cpu()
    rows, nans, above, below = flat[:4].tolist()
    if not rows or nans or (above and below):
        return math.nan
    if above or below:
        return math.inf if above else -math.inf
    high, low = flat[4:].view(2, EXPONENTS).tolist()
    total = sum(
        ((high_sum << LOW_BITS) + low_sum) << bin
        for bin, (high_sum, low_sum) in enumerate(zip(high, low, strict=True))
    )
    return float(Fraction(total, rows << (MANTISSA_BITS - SMALLEST_EXPONENT)))
