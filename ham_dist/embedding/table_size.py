"""One table before and after the search: an entry of sizes.json. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TableSize:
    """One table before and after.

    rows:           C_j.
    base_width:     columns in the supernet.
    kept_columns:   their numbers in the supernet's table, ascending.
    searched_width: how many they are.
    stored_width:   columns in memory after the cut, padding included; 0 for a table that has left.
    bytes_before:   in the tables' precision, at the base width.
    bytes_after:    in the tables' precision, at the searched width: without padding. The run's own bundle stores float32 and float16 so; bfloat16
                    goes into it as float32, in twice as many.
    """

    field: str
    rows: int
    base_width: int
    kept_columns: list[int]
    searched_width: int
    stored_width: int
    bytes_before: int
    bytes_after: int


def read_sizes(path: Path) -> list[TableSize]:
    """What a run folder's sizes.json holds."""
    return [TableSize(**size) for size in json.loads(path.read_text(encoding="utf-8"))]
