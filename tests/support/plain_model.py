"""The model in plain torch: nn.EmbeddingBag, torch.optim.Adam, the regularizer by autograd; one process."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ham_dist.config.schema import RunSettings
from ham_dist.models.registry import build_interaction

FIELDS = {"user": 60, "gender": 3, "movie": 40, "genres": 9}
"""C_j; `genres` has several values a row, some rows none."""
SINGLE_VALUED = ("user", "gender", "movie")


class PlainModel(nn.Module):
    """The reference of the sharded model. `tables` are its initial values."""

    def __init__(self, settings: RunSettings, tables: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self.interaction = build_interaction(
            settings.model, {field: table.shape[1] for field, table in tables.items()}
        )
        self.fields = list(tables)
        self.bags = [
            nn.EmbeddingBag.from_pretrained(table.clone(), freeze=False, mode="mean")
            for table in tables.values()
        ]
        self.tables = nn.ModuleList(self.bags)

    def columns(self, ids: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """(B, D); ids are (values, offsets) of every one of FIELDS."""
        by_field = dict(zip(FIELDS, ids, strict=True))
        return torch.cat(
            [table(*by_field[field]) for field, table in zip(self.fields, self.bags, strict=True)], dim=1
        )

    def loss(
        self,
        ids: list[tuple[torch.Tensor, torch.Tensor]],
        labels: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean log loss."""
        columns = self.columns(ids)
        return functional.binary_cross_entropy_with_logits(
            self.interaction(columns if mask is None else columns * mask), labels
        )

    def regularizer(self) -> torch.Tensor:
        """R(V) of Eq. 1, as it is written."""
        weights = [bag.weight for bag in self.bags]
        return sum(
            ((v.T @ v - torch.eye(v.shape[1])).square().sum() / v.shape[1] ** 2 for v in weights),
            torch.zeros(()),
        )


def global_batch(rows: int, seed: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Ids of every field as (values, lengths), and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for field, num_embeddings in FIELDS.items():
        lengths = (
            torch.randint(0, 4, (rows,), generator=generator)
            if field == "genres"
            else torch.ones(rows, dtype=torch.int64)
        )
        ids.append((torch.randint(0, num_embeddings, (int(lengths.sum()),), generator=generator), lengths))
    return ids, torch.randint(0, 2, (rows,), generator=generator).float()
