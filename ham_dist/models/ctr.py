"""A CTR model over TorchRec tables: lookup, mask, interaction."""

from collections.abc import Container, Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.embedding.mask import (
    ColumnLayout,
    ColumnMask,
    MaskedEmbeddingBagCollection,
    look_up,
    ordered_columns,
)
from ham_dist.embedding.tables import Table, embedding_bags
from ham_dist.models.interaction import Interaction


class CTRModel(nn.Module):
    """Logits of a batch: the masked columns of all fields through one interaction.

    tables:             the embedding tables, with the mask over their columns; they give the sum of a bag's rows.
    interaction:        reads the columns of all fields, in the order of its `dims`.
    first_order_tables: tables of width 1 (the usual first-order term of FM and DeepFM), added up into the logit; None where the term, if there is
                        one, is part of the interaction. They give sums too.
    single_valued:      fields of which no bag has more than one id. Of the others the mean is taken here.
    autocasts:          whether the interaction's products are in bfloat16 (torch's autocast) where a gradient is wanted. What is only scored, to
                        evaluate, to slice and to export, is in the precision of its weights.
    """

    def __init__(
        self,
        tables: MaskedEmbeddingBagCollection,
        interaction: Interaction,
        first_order_tables: EmbeddingBagCollection | None,
        single_valued: Container[str],
        *,
        autocasts: bool = False,
    ) -> None:
        super().__init__()
        self.autocasts = autocasts
        self.tables = tables
        self.interaction = interaction
        self.first_order_tables = first_order_tables
        self._widths = {field: width for field, width in interaction.dims.items() if width}
        first_order = (
            []
            if first_order_tables is None
            else [config.feature_names[0] for config in first_order_tables.embedding_bag_configs()]
        )
        self._terms = dict.fromkeys(first_order, 1)
        self._averaged = [
            field for field in dict.fromkeys([*self._widths, *first_order]) if field not in single_valued
        ]

    def forward(
        self, sparse_features: KeyedJaggedTensor, rows: int | None = None, sent: object = None
    ) -> torch.Tensor:
        """Logits (B,).

        Args:
            rows: B, where `sparse_features` has empty bags behind those of the samples: what is looked up for them is dropped.
            sent: The exchange of the ids between ranks, if that is under way: sharded tables take it as their second argument.
        """
        counts = {
            field: sparse_features[field].lengths().clamp(min=1).unsqueeze(1) for field in self._averaged
        }
        columns = first_rows(
            ordered_columns(self.tables.look_up(sparse_features, sent), self._widths, counts), rows
        )
        with torch.autocast(
            columns.device.type, torch.bfloat16, enabled=self.autocasts and torch.is_grad_enabled()
        ):
            logits = self.interaction(columns.to(self.interaction.dtype), self.mask.values)
        if self.first_order_tables is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.mask.detached):
                # Only the first column of each table is the term; where a kernel needs padding, the rest must get no gradient.
                terms = first_rows(
                    ordered_columns(
                        look_up(self.first_order_tables, sparse_features, sent), self._terms, counts
                    ),
                    rows,
                )
            logits = logits + terms.sum(dim=1)
        return logits

    @property
    def mask(self) -> ColumnMask:
        """The mask over this model's columns."""
        return self.tables.mask


def first_rows(values: torch.Tensor, rows: int | None) -> torch.Tensor:
    """The first `rows` of values, all of them for None. A slice of all would be one to autograd too, whose gradient is zeros and a copy onto them."""
    return values if rows is None else values[:rows]


def column_layout(tables: Sequence[Table]) -> ColumnLayout:
    """The layout of the columns of `tables`."""
    return ColumnLayout(
        {table.field: table.embedding_dim for table in tables},
        {table.field: table.num_embeddings for table in tables},
        number_bytes={table.field: table.number_bytes for table in tables},
    )


def ctr_model(
    tables: Sequence[Table],
    interaction: Interaction,
    first_order: Sequence[Table],
    single_valued: Container[str],
    *,
    autocasts: bool = False,
) -> CTRModel:
    """A model whose tables have no memory yet: sharding gives each rank its own.

    single_valued, autocasts: as of CTRModel.
    """
    layout = column_layout(tables)
    masked = MaskedEmbeddingBagCollection(embedding_bags(tables), ColumnMask(layout))
    return CTRModel(
        masked,
        interaction,
        embedding_bags(first_order) if first_order else None,
        single_valued,
        autocasts=autocasts,
    )
