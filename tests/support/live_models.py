"""Small models to export, and a second way to their logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ham_dist.config.schema import ModelSettings
from ham_dist.embedding.tables import TableChunk
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description, write_bundle
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction
from tests.support.model_settings import model_settings

ROWS = {"user": 11, "gone": 6, "genres": 7, "age": 3}
DIMS = {"user": 5, "gone": 0, "genres": 2, "age": 1}
MULTI_VALUED = {"genres"}
B = 13


@dataclass
class Live:
    """A trained model, as far as export sees it."""

    settings: ModelSettings
    fields: list[FieldEntry]
    tables: dict[str, torch.Tensor]
    first_order: dict[str, torch.Tensor]
    interaction: Interaction

    def probabilities(self, ids: Mapping[str, Ids]) -> torch.Tensor:
        """By a loop over rows, fields and values."""
        rows = len(ids["user"])
        columns = torch.cat(
            [mean_rows(table, ids[field], rows) for field, table in self.tables.items()], dim=1
        )
        with torch.no_grad():
            logits = self.interaction(columns)
        for field, table in self.first_order.items():
            logits = logits + mean_rows(table, ids[field], rows)[:, 0]
        return torch.sigmoid(logits)


def mean_rows(table: torch.Tensor, ids: Ids, rows: int) -> torch.Tensor:
    if isinstance(ids, torch.Tensor):
        return table[ids]
    values, offsets = ids
    bags = [values[offsets[row] : offsets[row + 1]] for row in range(rows)]
    return torch.stack([table[bag].mean(0) if len(bag) else torch.zeros(table.shape[1]) for bag in bags])


def live_model(
    name: str = "dcnv2",
    first_order: str = "linear",
    seed: int = 0,
    counts: Mapping[str, int] = ROWS,
    dims: Mapping[str, int] = DIMS,
) -> Live:
    """`name` over `dims`, one field of which has lost all its columns; BatchNorm has seen some data."""
    torch.manual_seed(seed)
    settings = model_settings(name, lift_dim=4, mlp=(8, 4), first_order=first_order)
    kind = INTERACTIONS[name]
    has_tables = kind.has_first_order_tables(settings)
    interaction = build_interaction(settings, dims)
    interaction.train()
    interaction(torch.randn(50, sum(dims.values())) + 0.5)
    return Live(
        settings,
        fields=[
            FieldEntry(
                name=field,
                num_embeddings=counts[field],
                embedding_dim=width,
                multi_valued=field in MULTI_VALUED,
                keeps_slot=not width and kind.keeps_slots,
            )
            for field, width in dims.items()
            if width or kind.keeps_slots or has_tables
        ],
        tables={field: torch.randn(counts[field], width) for field, width in dims.items() if width},
        first_order={field: torch.randn(rows, 1) for field, rows in counts.items()} if has_tables else {},
        interaction=interaction.eval(),
    )


def some_ids(rows: int = B, seed: int = 1) -> dict[str, Ids]:
    """Ids of all fields; some rows have no genre at all."""
    generator = torch.Generator().manual_seed(seed)
    ids: dict[str, Ids] = {
        field: torch.randint(0, ROWS[field], (rows,), generator=generator)
        for field in ROWS
        if field not in MULTI_VALUED
    }
    offsets = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.randint(0, 4, (rows,), generator=generator).cumsum(0)]
    )
    ids["genres"] = (torch.randint(0, ROWS["genres"], (int(offsets[-1]),), generator=generator), offsets)
    return ids


def as_arrays(ids: Mapping[str, Ids]) -> dict[str, Any]:
    """Ids by field as `FieldOrder.batch` takes them."""
    return {
        field: tuple(part.numpy() for part in found) if isinstance(found, tuple) else found.numpy()
        for field, found in ids.items()
    }


def chunks(
    tables: Mapping[str, torch.Tensor], rows: int = 1000, rank: int = 0, world_size: int = 1
) -> list[TableChunk]:
    """Pieces of `rows` rows, dealt to the ranks in turn."""
    pieces = [
        TableChunk(field, start, table[start : start + rows])
        for field, table in tables.items()
        for start in range(0, len(table), rows)
    ]
    return pieces[rank::world_size]


def export(live: Live, out: Path, **options: Any) -> dict[str, Any]:
    """Write `live` as a bundle, from one process."""
    description = {
        key: options.pop(key) for key in ("precision", "recipe", "run", "unknown") if key in options
    }
    return write_bundle(
        out,
        Description(live.fields, live.settings, **description),
        **{
            "chunks": chunks(live.tables),
            "first_order_chunks": chunks(live.first_order),
            "dense": live.interaction.state_dict(),
            **options,
        },
    )
