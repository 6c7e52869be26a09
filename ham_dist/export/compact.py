"""The exported model: torch tables of different dims, and an interaction on top.

B rows, d_j columns of field j, D = sum of d_j
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from ham_dist.models.interaction import Interaction

Ids: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Ids of one field, int64: (B,), one per row; or (values, offsets), where row b has values[offsets[b] :
offsets[b + 1]] and offsets is (B + 1,)."""


def pooled(table: torch.Tensor, ids: Ids) -> torch.Tensor:
    """Returns the mean of the table rows of each batch row's ids, (B, d_j) float32; zeros without ids.

    The table keeps its precision; only the rows looked up are converted to float32, before they are averaged.
    """
    if isinstance(ids, torch.Tensor):
        return functional.embedding(ids, table).float()
    values, offsets = ids
    rows = functional.embedding(values, table).float()
    return functional.embedding_bag(
        torch.arange(len(values), device=values.device), rows, offsets, mode="mean", include_last_offset=True
    )


class CompactModel(nn.Module):
    """The exported model for serving: frozen, in evaluation mode.

    Args:
        tables: Tables by field, (C_j, d_j) float32 or float16, for the fields of `interaction.dims` with
            columns.
        interaction: The interaction; it reads the columns in the order of its `dims`.
        first_order: First-order tables by field, (C_j, 1), whose rows are added to the logit; also for fields
            that have no other table.
    """

    def __init__(
        self,
        tables: Mapping[str, torch.Tensor],
        interaction: Interaction,
        first_order: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        # Lists, not dictionaries by field: a field's name may hold characters that torch refuses in parameter
        # names.
        self.fields = [field for field, width in interaction.dims.items() if width]
        self.tables = nn.ParameterList(
            nn.Parameter(tables[field], requires_grad=False) for field in self.fields
        )
        self.interaction = interaction.requires_grad_(False)
        self.first_order_fields = list(first_order or {})
        self.first_order = nn.ParameterList(
            nn.Parameter(table, requires_grad=False) for table in (first_order or {}).values()
        )
        self.eval()

    @property
    def read_fields(self) -> list[str]:
        """The fields whose ids `forward` reads."""
        return list(dict.fromkeys([*self.fields, *self.first_order_fields]))

    def forward(self, ids: Mapping[str, Ids]) -> torch.Tensor:
        """Returns the logits (B,) of a batch.

        Args:
            ids: Ids by field, 0 to C_j - 1; fields not in `read_fields` are ignored. They are not checked, as
                that would wait for the device and cannot be exported by torch.export.
        """
        columns = [pooled(table, ids[field]) for field, table in zip(self.fields, self.tables, strict=True)]
        logits: torch.Tensor = self.interaction(torch.cat(columns, dim=1))
        for field, table in zip(self.first_order_fields, self.first_order, strict=True):
            logits = logits + pooled(table, ids[field]).squeeze(1)
        return logits
