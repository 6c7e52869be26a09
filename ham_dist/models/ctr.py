"""A CTR model over TorchRec tables: lookup, mask, interaction."""

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.embedding.mask import ColumnLayout, ColumnMask, MaskedEmbeddingBagCollection, ordered_columns
from ham_dist.embedding.tables import Table, embedding_bags
from ham_dist.models.interaction import Interaction


class CTRModel(nn.Module):
    """Logits of a batch: the masked columns of all fields through one interaction.

    tables:             the embedding tables, with the mask over their columns.
    interaction:        reads the columns of all fields, in the order of its `widths`.
    first_order_tables: tables of width 1 (the usual first-order term of FM and DeepFM), added up into the logit; None where the term, if there is
                        one, is part of the interaction.
    """

    def __init__(
        self, tables: MaskedEmbeddingBagCollection, interaction: Interaction, first_order_tables: EmbeddingBagCollection | None = None
    ) -> None:
        super().__init__()
        self.tables = tables
        self.interaction = interaction
        self.first_order_tables = first_order_tables
        self._widths = {field: width for field, width in interaction.widths.items() if width}

    def forward(self, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """Logits (B,)."""
        columns = ordered_columns(self.tables(sparse_features), self._widths)
        logits = self.interaction(columns.to(self.interaction.dtype))
        if self.first_order_tables is not None:
            terms = self.first_order_tables(sparse_features)
            # Only the first column of each table is the term; where a kernel needs padding, the rest must get no gradient.
            logits = logits + terms.values()[:, :: terms.length_per_key()[0]].sum(dim=1)
        return logits

    @property
    def mask(self) -> ColumnMask:
        """The mask over this model's columns."""
        return self.tables.mask


def ctr_model(tables: Sequence[Table], interaction: Interaction, first_order: Sequence[Table] = ()) -> CTRModel:
    """A model whose tables have no memory yet: sharding gives each rank its own."""
    layout = ColumnLayout({table.field: table.width for table in tables}, {table.field: table.rows for table in tables})
    masked = MaskedEmbeddingBagCollection(embedding_bags(tables), ColumnMask(layout))
    return CTRModel(masked, interaction, embedding_bags(first_order) if first_order else None)
