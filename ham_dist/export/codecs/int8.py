"""8-bit codes over the range of each column: a quarter of float32 at any dim."""

import torch
from torch.nn import functional

from ham_dist.export.codecs.columns import ColumnCodec


class Int8(ColumnCodec):
    """One byte for each number: `values` is (C, d)."""

    rows_per_group = 1

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """The codes themselves."""
        return codes

    def unpack(self, values: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
        """The rows of `values`."""
        del dim
        return functional.embedding(ids, values)


INT8 = Int8("int8", 8, auc_tolerance=1e-4)
