"""The exported model: torch tables of different dims, and an interaction on top.

B rows, d_j columns of field j, D = sum of d_j
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from ham_dist.export.codecs.codec import Codec
from ham_dist.models.interaction import Interaction

Ids: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Ids of one field, int64: (B,), one per row; or (values, offsets), where row b has values[offsets[b] :
offsets[b + 1]] and offsets is (B + 1,)."""


class StoredTable(nn.Module):
    """A table in the encoding of its codec; only the rows that are looked up are decoded.

    Args:
        codec: Codec of the tensors.
        tensors: The tensors of `codec.layout`, which may be mapped files.
    """

    def __init__(self, codec: Codec, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.codec = codec
        self._names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """The stored tensors by name."""
        return {name: self.get_buffer(name) for name in self._names}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the rows `ids`, (n, d_j) float32; ids are not checked."""
        return self.codec.decode(self.stored, ids)


def pooled(table: Callable[[torch.Tensor], torch.Tensor], ids: Ids) -> torch.Tensor:
    """Returns the mean of the table rows of each batch row's ids, (B, d_j) float32; zeros without ids.

    Args:
        table: Returns the rows of some ids as float32, such as a `StoredTable`.
        ids: Ids of one field.
    """
    if isinstance(ids, torch.Tensor):
        return table(ids)
    values, offsets = ids
    return functional.embedding_bag(
        torch.arange(values.shape[0], device=values.device),  # len() would be a constant in torch.export
        table(values),
        offsets,
        mode="mean",
        include_last_offset=True,
    )


class CompactModel(nn.Module):
    """The exported model for serving: frozen, in evaluation mode.

    Args:
        tables: Tables by field, (C_j, d_j), for the fields of `interaction.dims` with columns.
        interaction: The interaction; it reads the columns in the order of its `dims`.
        first_order: First-order tables by field, (C_j, 1), whose rows are added to the logit; also for fields
            that have no other table.
    """

    def __init__(
        self,
        tables: Mapping[str, StoredTable],
        interaction: Interaction,
        first_order: Mapping[str, StoredTable] | None = None,
    ) -> None:
        super().__init__()
        # Lists, not dictionaries by field: a field's name may hold characters that torch refuses in names of
        # modules.
        self.fields = [field for field, dim in interaction.dims.items() if dim]
        self.tables = nn.ModuleList(tables[field] for field in self.fields)
        self.interaction = interaction.requires_grad_(False)
        self.first_order_fields = list(first_order or {})
        self.first_order = nn.ModuleList((first_order or {}).values())
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
        logits: torch.Tensor = self.interaction(self.columns(ids))
        for field, table in zip(self.first_order_fields, self.first_order, strict=True):
            logits = logits + pooled(table, ids[field]).squeeze(1)
        return logits

    def columns(self, ids: Mapping[str, Ids]) -> torch.Tensor:
        """Returns the columns that the interaction reads, (B, D)."""
        tables = zip(self.fields, self.tables, strict=True)
        return torch.cat([pooled(table, ids[field]) for field, table in tables], dim=1)
