"""6-bit codes over a clipped range: 3 bytes hold a column's numbers of 4 rows."""

import torch
from torch.nn import functional

from ham_dist.export.codecs.clipping import ClippedCodec


class Int6(ClippedCodec):
    """Row r of a group of four is in bits 6 r to 6 r + 5 of a little-endian word of 3 bytes.

    `values` is (groups, 3 d): byte b of column j is at b * d + j.
    """

    rows_per_group = 4

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, d) to (n / 4, 3 d)."""
        of_group = codes.view(-1, 4, codes.shape[1]).int()
        shifts = torch.arange(0, 24, 6, dtype=torch.int32).view(1, 4, 1)
        words = (of_group << shifts).sum(dim=1, dtype=torch.int32)
        return torch.cat([(words >> shift & 255).to(torch.uint8) for shift in (0, 8, 16)], dim=1)

    def unpack(self, values: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
        """The 6 bits of each number."""
        bytes_of_group = functional.embedding(ids // 4, values).int()
        first, second, third = bytes_of_group.split(dim, dim=-1)
        words = first | second << 8 | third << 16
        # As a function: torch.onnx knows no `>>`.
        return torch.bitwise_right_shift(words, (6 * (ids % 4)).int().unsqueeze(-1)) & 63


INT6 = Int6("int6", 6, auc_tolerance=2e-4)
