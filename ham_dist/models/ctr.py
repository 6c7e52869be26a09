"""A CTR model over TorchRec tables: lookup, mask, interaction.

Shape letters: B rows of a batch, D columns of all fields.
"""

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
    """Computes the logits of a batch from the masked columns of all fields, through one interaction.

    Args:
        tables: The embedding tables with the mask over their columns, with sum pooling.
        interaction: Reads the columns of all fields, in the order of its `dims`.
        first_order_tables: Tables of dim 1, with sum pooling, whose values are added to the logit (the usual
            first-order term of FM and DeepFM); None if the interaction contains this term or the model has
            none.
        single_valued: Fields whose bags have at most one id. For all other fields the model takes the mean.
        autocasts: True to compute the products of the interaction in bfloat16 (torch's autocast) where a
            gradient is needed. Evaluation, slicing and export use the precision of the weights.
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
        self._dims = {field: dim for field, dim in interaction.dims.items() if dim}
        first_order = (
            []
            if first_order_tables is None
            else [config.feature_names[0] for config in first_order_tables.embedding_bag_configs()]
        )
        self._terms = dict.fromkeys(first_order, 1)
        self._averaged = [
            field for field in dict.fromkeys([*self._dims, *first_order]) if field not in single_valued
        ]

    def forward(
        self, sparse_features: KeyedJaggedTensor, rows: int | None = None, sent: object = None
    ) -> torch.Tensor:
        """Returns the logits, (B,).

        Args:
            sparse_features: Ids of B rows, possibly followed by empty bags.
            rows: B if `sparse_features` has empty bags after those of the samples: what is looked up for them
                is dropped.
            sent: The exchange of the ids between ranks if it has been started; sharded tables take it as
                second argument.
        """
        counts = self._counts(sparse_features)
        columns = self._columns(sparse_features, rows, sent, counts)
        with torch.autocast(
            columns.device.type, torch.bfloat16, enabled=self.autocasts and torch.is_grad_enabled()
        ):
            logits = self.interaction(*self.mask.applied(columns.to(self.interaction.dtype)))
        if self.first_order_tables is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.mask.detached):
                # The term is the first column of each table; the others are padding and must get no gradient.
                terms = first_rows(
                    ordered_columns(
                        look_up(self.first_order_tables, sparse_features, sent), self._terms, counts
                    ),
                    rows,
                )
            logits = logits + terms.sum(dim=1)
        return logits

    def columns(
        self, sparse_features: KeyedJaggedTensor, rows: int | None = None, sent: object = None
    ) -> torch.Tensor:
        """Returns the columns of all fields without the mask, (B, D), in the order of the interaction.

        Args:
            sparse_features: As in `forward`, like the others.
        """
        return self._columns(sparse_features, rows, sent, self._counts(sparse_features))

    def _columns(
        self,
        sparse_features: KeyedJaggedTensor,
        rows: int | None,
        sent: object,
        counts: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        looked_up = self.tables.look_up(sparse_features, sent)
        return first_rows(ordered_columns(looked_up, self._dims, counts), rows)

    def _counts(self, sparse_features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        """Number of ids in each bag, (B, 1), of the fields whose mean is taken."""
        return {field: sparse_features[field].lengths().clamp(min=1).unsqueeze(1) for field in self._averaged}

    @property
    def mask(self) -> ColumnMask:
        """The mask over this model's columns."""
        return self.tables.mask


def first_rows(values: torch.Tensor, rows: int | None) -> torch.Tensor:
    """Returns the first `rows` of `values`; all of them for None.

    None avoids a slice of all rows: its gradient would be a tensor of zeros and a copy into it.
    """
    return values if rows is None else values[:rows]


def column_layout(tables: Sequence[Table]) -> ColumnLayout:
    """Returns the layout of the columns of `tables`."""
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
    """Returns a model whose tables have no memory yet; sharding allocates each rank's part.

    Args:
        tables: Tables under search.
        interaction: As in CTRModel.
        first_order: First-order tables; empty if there are none.
        single_valued: As in CTRModel.
        autocasts: As in CTRModel.
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
