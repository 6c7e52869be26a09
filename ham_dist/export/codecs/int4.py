"""4-bit codes over a clipped range: one byte holds a column's numbers of 2 rows.

For models that were retrained with quantization: 16 values a column lose accuracy in others.
"""

import torch
from torch.nn import functional

from ham_dist.export.codecs.clipping import ClippedCodec


class Int4(ClippedCodec):
    """The low four bits are those of the even row: `values` is (groups, d)."""

    rows_per_group = 2

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, d) to (n / 2, d)."""
        return codes[0::2] | codes[1::2] << 4

    def unpack(self, values: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
        """The 4 bits of each number."""
        del dim
        pairs = functional.embedding(ids // 2, values).int()
        # As a function: torch.onnx knows no `>>`.
        return torch.bitwise_right_shift(pairs, (4 * (ids % 2)).int().unsqueeze(-1)) & 15


INT4 = Int4("int4", 4, auc_tolerance=5e-4)
