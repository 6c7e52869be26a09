"""The lift: one linear map per field, without bias, from its dim d_j to a common dim L.

Shape letters: B rows, F fields, d_j columns of field j, D = sum of d_j, L = lift_dim, n outputs of a linear
map that reads the lifted fields.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ham_dist.config.schema import ModelSettings


class LiftedSettings(ModelSettings):
    """Settings of a model that lifts its fields."""

    lift_dim: Annotated[int, Field(gt=0, le=4096)] = 16
    """Dim that every field is lifted to, by a linear map without bias (HAM paper, section 4.3)."""


class Lift(nn.Module):
    """Columns (B, D) -> lifted fields (B, F, L): field j is x_j W_j, with x_j (B, d_j) and W_j (d_j, L).

    All W_j are stored in one weight (D, L) with a row per column, so that slicing a column removes a row.
    Fields of unequal dims are padded with zero weights to the largest dim, so that one batched product lifts
    all fields: F separate products would launch F kernels, and a block-diagonal matrix would multiply F times
    as many numbers.

    Args:
        dims: d_j by field; a field of dim 0 gives a slot of zeros.
        lift_dim: L.
    Source: HAM paper, section 4.3, after Ginart et al., "Mixed dimension embeddings" (2019).
    """

    padded_columns: torch.Tensor
    padded_rows: torch.Tensor
    unpadded: torch.Tensor

    def __init__(self, dims: Mapping[str, int], lift_dim: int) -> None:
        super().__init__()
        self.dims = tuple(dims.values())
        self.largest_dim = max(self.dims)
        total = sum(self.dims)
        self.weight = nn.Parameter(torch.empty(total, lift_dim))
        for dim, block in zip(self.dims, self.weight.detach().split(self.dims), strict=True):
            if dim:
                nn.init.uniform_(block, -(dim**-0.5), dim**-0.5)  # the initialization of nn.Linear(d_j, L)
        self.has_equal_dims = all(dim == self.largest_dim for dim in self.dims)
        starts = list(accumulate(self.dims, initial=0))[:-1]
        slots = [
            (start + i, i < dim)
            for start, dim in zip(starts, self.dims, strict=True)
            for i in range(self.largest_dim)
        ]
        # Padding reads column 0, times the row of zeros that _blocks appends to the weight.
        self.register_buffer(
            "padded_columns",
            torch.tensor([column if is_real else 0 for column, is_real in slots]),
            persistent=False,
        )
        self.register_buffer(
            "padded_rows",
            torch.tensor([column if is_real else total for column, is_real in slots]),
            persistent=False,
        )
        self.register_buffer(
            "unpadded",
            torch.tensor([place for place, (_, is_real) in enumerate(slots) if is_real]),
            persistent=False,
        )

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the lifted fields, (B, F, L).

        Args:
            columns: Columns of all fields, (B, D).
            mask: Factors of the columns, (D,); None: all ones.
        """
        return self.by_field(columns, mask).transpose(0, 1).contiguous()

    def by_field(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the lifted fields as (F, B, L), the layout of the product.

        A transpose takes as long as the product itself.
        """
        if not self.has_equal_dims:
            columns = self._padded(columns)
        blocks = self._blocks(mask)
        return torch.bmm(columns.unflatten(1, (len(blocks), self.largest_dim)).transpose(0, 1), blocks)

    def _padded(self, columns: torch.Tensor) -> torch.Tensor:
        """Returns the columns with each field padded to the largest dim, (B, F * largest d_j).

        The padding is multiplied by weights of zero.
        """
        if not torch.compiler.is_exporting():
            return columns.index_select(1, self.padded_columns)
        # Compiled code copies vectors here, where it would gather single numbers. Eager torch would call an
        # operation for each field.
        parts = iter(columns.split([dim for dim in self.dims if dim], dim=1))
        empty = columns.new_zeros(columns.shape[0], self.largest_dim)
        return torch.cat(
            [functional.pad(next(parts), (0, self.largest_dim - dim)) if dim else empty for dim in self.dims],
            dim=1,
        )

    def folded_into(self, weight: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Multiplies the lift into the linear map that reads the lifted fields: one map of the columns.

        This takes D L n products once and B D n per batch, where lifting first takes B D L and B F L n. It is
        faster if D is less than F L, as in a sliced model, and the batch has at least some hundred rows.

        Args:
            weight: (n, F * L), reads the concatenated lifted fields.
            mask: Factors of the columns, (D,); None: all ones.
        Returns:
            (n, D).
        """
        blocks = self._blocks(mask)
        folded = torch.bmm(blocks, weight.view(-1, len(blocks), blocks.shape[2]).permute(1, 2, 0)).flatten(
            0, 1
        )
        return (folded if self.has_equal_dims else folded.index_select(0, self.unpadded)).t()

    def _blocks(self, mask: torch.Tensor | None) -> torch.Tensor:
        """Returns the W_j, padded with zero weights: (F, largest d_j, L).

        (x * m) W = x (m * W): multiplying the mask into the weight takes D L products in place of B D.
        """
        weight: torch.Tensor = self.weight if mask is None else self.weight * mask.unsqueeze(1)
        if not self.has_equal_dims:
            weight = functional.pad(weight, (0, 0, 0, 1)).index_select(0, self.padded_rows)
        return weight.unflatten(0, (len(self.dims), self.largest_dim))
