"""Rounding that makes sums independent of how their terms are spread over ranks.

The order of the terms changes only the last few of the 53 bits of a float64 sum. After rounding to far fewer
bits, two orders almost never differ: only if the sum is very close to the middle between two rounded numbers,
about 2^-50 of all sums for each bit that is kept. So all sums over ranks are computed in float64 and rounded,
also on one rank.
"""

import torch

FLOAT32_BITS = 24
"""Significant bits of a float32, for sums that need the full precision of float32."""

GRADIENT_BITS = 16
"""Significant bits of gradients of weights; an error of 2^-17 is far below the noise of a batch's
gradient."""


@torch.no_grad()
def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns float64 `values` rounded to `bits` significant bits, ties to even.

    With FLOAT32_BITS, values outside the range of float32 become infinite.
    """
    if bits == FLOAT32_BITS:
        return values.float().double()  # rounded by the hardware
    fraction, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(fraction * 2.0**bits) * 2.0**-bits, exponent)
