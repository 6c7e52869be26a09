"""Each table before and after the search: what sizes.json holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ham_dist.embedding.mask import Columns
from ham_dist.embedding.tables import Table


@dataclass(frozen=True)
class TableSize:
    """One table before and after.

    rows:           C_j.
    base_width:     columns in the supernet.
    kept_columns:   their numbers in the supernet's table, ascending.
    searched_width: how many they are.
    stored_width:   columns in memory after the cut, padding included; 0 for a table that has left.
    bytes_before:   in the tables' precision, at the base width.
    bytes_after:    in the tables' precision, at the searched width: without padding, as the run's bundle stores float32 and float16.
    """

    field: str
    rows: int
    base_width: int
    kept_columns: list[int]
    searched_width: int
    stored_width: int
    bytes_before: int
    bytes_after: int


def table_sizes(before: Sequence[Table], after: Sequence[Table], columns: Columns) -> list[TableSize]:
    """The sizes of all tables of the supernet, tables that left among them.

    before: the supernet's tables; after: the narrow model's.
    """
    stored = {table.field: table.stored_width for table in after}
    return [
        TableSize(
            field=table.field,
            rows=table.rows,
            base_width=table.width,
            kept_columns=columns[table.field].tolist(),
            searched_width=len(columns[table.field]),
            stored_width=stored.get(table.field, 0),
            bytes_before=table.rows * table.width * table.number_bytes,
            bytes_after=table.rows * len(columns[table.field]) * table.number_bytes,
        )
        for table in before
    ]


def read_sizes(path: Path) -> list[TableSize]:
    """What a run folder's sizes.json holds."""
    return [TableSize(**size) for size in json.loads(path.read_text(encoding="utf-8"))]
