"""The exported model in TorchRec's modules, ready to be sharded by DistributedModelParallel.

B rows, D columns
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.embedding.tables import Table, embedding_bags
from ham_dist.models.interaction import Interaction


class TorchRecModel(nn.Module):
    """Tables in EmbeddingBagCollections, and the interaction on top.

    Args:
        tables: The tables of columns, in the order of the interaction's fields.
        first_order: Tables of one column, whose rows are added to the logit; often none.
        weights: Rows of each table by its field, (C_j, stored_dim) float32: of `tables`, of `first_order`.
        interaction: The dense part, in evaluation mode.
        multi_valued: Fields with several values for a record, whose rows are averaged.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        first_order: Sequence[Table],
        weights: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
        interaction: Interaction,
        multi_valued: frozenset[str],
    ) -> None:
        super().__init__()
        self.ebc = _collection(tables, weights[0])
        self.first_order_ebc = _collection(first_order, weights[1]) if first_order else None
        self.interaction = interaction
        self._dims = {table.field: table.embedding_dim for table in tables}
        self._first_order = [table.field for table in first_order]
        self._multi_valued = multi_valued
        self.eval()

    @property
    def fields(self) -> list[str]:
        """The keys that `forward` reads."""
        return list(dict.fromkeys([*self._dims, *self._first_order]))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Returns the logits, (B,).

        Args:
            features: Ids, 0 to C_j - 1, which are not checked; a key for each of `fields`.
        """
        found = self.ebc(features).to_dict()
        # A table may have columns of zeros behind its own, so that fused kernels accept its dim.
        columns = [self._mean(features, name, found[name])[:, :dim] for name, dim in self._dims.items()]
        logits: torch.Tensor = self.interaction(torch.cat(columns, dim=1))
        if self.first_order_ebc is not None:
            terms = self.first_order_ebc(features).to_dict()
            for name in self._first_order:
                logits = logits + self._mean(features, name, terms[name])[:, 0]
        return logits

    def _mean(self, features: KeyedJaggedTensor, name: str, sums: torch.Tensor) -> torch.Tensor:
        if name not in self._multi_valued:
            return sums
        return sums / features[name].lengths().clamp(min=1).unsqueeze(1)


def _collection(tables: Sequence[Table], weights: Mapping[str, torch.Tensor]) -> EmbeddingBagCollection:
    with torch.random.fork_rng(devices=[]):
        collection = embedding_bags(tables, "cpu")
    for table in tables:
        collection.embedding_bags[table.module_name].weight = nn.Parameter(weights[table.field])
    return collection
