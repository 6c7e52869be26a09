"""One linear map for each field, without bias, that brings fields of different dims to one width.

B rows, F fields, d_j columns of field j, D = sum of d_j, L = lift_dim, n outputs of a linear map behind the lift
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from ham_dist.config.schema import ModelSettings


class LiftedSettings(ModelSettings):
    """Settings of a model that lifts its fields."""

    lift_dim: Annotated[int, Field(gt=0, le=4096)] = 16
    """Width that each field is lifted to by a linear map without bias (HAM paper, section 4.3)."""


class Lift(nn.Module):
    """Columns (B, D) -> lifted fields (B, F, L): slot j holds x_j W_j, with x_j the d_j columns of field j and W_j of shape (d_j, L).

    source: HAM paper, section 4.3, after Ginart et al., "Mixed dimension embeddings" (2019).

    All W_j lie in one weight (D, L), a row for each column, so that cutting a column cuts a row. Fields of unequal width are filled up to the widest
    with zero weights, so that one batched product does for all: F products would start F kernels, and a block-diagonal matrix multiplies F times as
    many numbers.

    dims: d_j by field; a field of width 0 gives a slot of zeros.
    """

    padded_columns: torch.Tensor
    padded_rows: torch.Tensor
    unpadded: torch.Tensor

    def __init__(self, dims: Mapping[str, int], lift_dim: int) -> None:
        super().__init__()
        self.dims = tuple(dims.values())
        self.widest = max(self.dims)
        total = sum(self.dims)
        self.weight = nn.Parameter(torch.empty(total, lift_dim))
        for width, block in zip(self.dims, self.weight.detach().split(self.dims), strict=True):
            if width:
                nn.init.uniform_(block, -(width**-0.5), width**-0.5)  # as nn.Linear(d_j, L) starts
        self.is_even = all(width == self.widest for width in self.dims)
        starts = list(accumulate(self.dims, initial=0))[:-1]
        slots = [
            (start + i, i < width)
            for start, width in zip(starts, self.dims, strict=True)
            for i in range(self.widest)
        ]
        # A place without a column reads column 0 times the row of zeros that _blocks puts after the weight's last.
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
        """Lifted fields (B, F, L) of the columns of all fields (B, D), each times its number of `mask` (D,)."""
        return self.by_field(columns, mask).transpose(0, 1).contiguous()

    def by_field(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The same as (F, B, L), as the product gives it: to turn it takes as long as to make it."""
        if not self.is_even:
            columns = columns.index_select(1, self.padded_columns)
        blocks = self._blocks(mask)
        return torch.bmm(columns.unflatten(1, (len(blocks), self.widest)).transpose(0, 1), blocks)

    def folded_into(self, weight: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The lift and the linear map behind it as one map of the columns.

        That takes D L n products once and B D n for a batch, where lifting first takes B D L and B F L n: less where D is less than F L, as in a
        narrow model, and the batch has some hundred rows.

        weight:  (n, F * L), which reads the lifted fields side by side.
        returns: (n, D).
        """
        blocks = self._blocks(mask)
        folded = torch.bmm(blocks, weight.view(-1, len(blocks), blocks.shape[2]).permute(1, 2, 0)).flatten(
            0, 1
        )
        return (folded if self.is_even else folded.index_select(0, self.unpadded)).t()

    def _blocks(self, mask: torch.Tensor | None) -> torch.Tensor:
        """(F, d_j, L), fields filled up with zero weights: (x * m) W = x (m * W) takes D L products for the mask instead of B D."""
        weight: torch.Tensor = self.weight if mask is None else self.weight * mask.unsqueeze(1)
        if not self.is_even:
            weight = torch.cat([weight, weight.new_zeros(1, weight.shape[1])]).index_select(
                0, self.padded_rows
            )
        return weight.unflatten(0, (len(self.dims), self.widest))
