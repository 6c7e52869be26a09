"""Scale and offset of a column by least squares: few codes are spent where most numbers are.

With 16 or 64 codes over a column's whole range, one large number makes all steps coarse. A smaller range
rounds the large numbers to its ends and all others more finely.

n rows, d columns
"""

import torch

from ham_dist.export.codecs.codec import TableRows
from ham_dist.export.codecs.columns import ColumnCodec, nearest_codes

SAMPLED_ROWS = 1 << 16
"""Rows that the least squares are taken over: evenly spaced, if a table has more."""
_SHRINKS = (1.0, 0.8, 0.6, 0.45, 0.3)
"""Shares of a column's range to start from, around its mean."""
_ROUNDS = 8
"""Steps of the iteration from each start; later ones change the error by less than a percent."""


class ClippedCodec(ColumnCodec):
    """Codes over the part of a column's range that has the least squared error."""

    def fit_within(
        self, table: TableRows, low: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of several starts, each improved by turns: nearest codes, then a regression on them.

        Both halves of a step lower the squared error, as in Lloyd's algorithm, so the result is never worse
        than the whole range. Numbers that the 4-bit codec gave are given again (to rounding).
        """
        rows = table.sample(SAMPLED_ROWS).double()
        mean = rows.mean(dim=0)
        best = _Fit(low, scale, _squared_error(rows, low, scale, self.largest_code))
        for steps in range(self.largest_code - 1, 0, -1) if self.largest_code < 16 else ():
            # Exact for numbers that this codec gave, which need not use its largest code.
            step = scale * (self.largest_code / steps)
            best.improve(low, step, _squared_error(rows, low, step, self.largest_code))
        for shrink in _SHRINKS:
            offset, step = mean + shrink * (low - mean), shrink * scale
            for _ in range(_ROUNDS):
                offset, step = _regression(rows, offset, step, self.largest_code)
            best.improve(offset, step, _squared_error(rows, offset, step, self.largest_code))
        return best.offset, best.scale


class _Fit:
    """The best scale and offset so far, column by column."""

    def __init__(self, offset: torch.Tensor, scale: torch.Tensor, error: torch.Tensor) -> None:
        self.offset, self.scale, self._error = offset, scale, error

    def improve(self, offset: torch.Tensor, scale: torch.Tensor, error: torch.Tensor) -> None:
        better = error < self._error
        self.offset = torch.where(better, offset, self.offset)
        self.scale = torch.where(better, scale, self.scale)
        self._error = torch.where(better, error, self._error)


def _squared_error(
    rows: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, largest: int
) -> torch.Tensor:
    """Sum over the rows, (d,)."""
    return (nearest_codes(rows, offset, scale, largest) * scale + offset - rows).square().sum(dim=0)


def _regression(
    rows: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, largest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offset and scale with the least squared error for the nearest codes of `offset` and `scale`."""
    codes = nearest_codes(rows, offset, scale, largest)
    code_mean, row_mean = codes.mean(dim=0), rows.mean(dim=0)
    centered = codes - code_mean
    variance = centered.square().sum(dim=0)
    fitted = (centered * (rows - row_mean)).sum(dim=0) / torch.where(variance > 0, variance, torch.inf)
    usable = fitted > 0
    return (
        torch.where(usable, row_mean - fitted * code_mean, offset),
        torch.where(usable, fitted, scale),
    )
