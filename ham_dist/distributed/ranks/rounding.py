"""Sums that come out the same however their terms are spread over ranks.

A float64 sum of the same numbers in another order differs in its last few of 53 bits. Rounded to far fewer, it almost never does: where a share of
about 2^-50 of sums per bit kept is near enough to the middle between two rounded numbers. So whatever is summed over ranks is summed in float64 and
rounded, on one rank too.
"""

import torch

FLOAT32_BITS = 24
"""Significant bits of a float32: for sums that must be as good as float32 has them."""

GRADIENT_BITS = 16
"""For gradients of weights, of which there are many; an error of 2^-17 is far below what one batch's gradient is worth."""


@torch.no_grad()
def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Float64 `values` to `bits` significant bits, halves to even; of FLOAT32_BITS, within the range of float32."""
    if bits == FLOAT32_BITS:
        return values.float().double()  # by the processor itself
    fraction, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(fraction * 2.0**bits) * 2.0**-bits, exponent)
