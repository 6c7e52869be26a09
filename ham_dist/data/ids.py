"""Rows -> ids, field by field: the same for training data and for scoring.

A query for one field at a time holds the lookup of one field in memory, and moves no column but its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ibis
import numpy as np
import pyarrow as pa

from ham_dist.data.columns import AnyField, Categorical
from ham_dist.data.engine import Engine
from ham_dist.data.expressions import ID, ROW, Sides, cells_of, hashed_ids, ids_of

# Beyond this many positions a row, the table from positions to places costs more than searching.
_SPARSE = 64


Made = tuple[str, AnyField, int | None]
"""The column that a field is made from, its settings, and the most rows of its table."""


class Encoder:
    """The ids of fields, by their vocabularies.

    fields:       what each is made of.
    vocabularies: of each field but the hashed ones, kept by the engine.
    sides:        side files, for the fields that the samples lack.
    """

    def __init__(self, engine: Engine, fields: Mapping[str, Made], vocabularies: Mapping[str, ibis.Table], sides: Sides = ()) -> None:
        self._engine, self._fields, self._vocabularies, self._sides = engine, fields, vocabularies, sides
        self._queries: dict[str, Callable[[], pa.Table]] = {}

    VIEW = "samples"

    def encode(self, samples: ibis.Table, rows: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, pa.Array]:
        """A column of ids for each field: int32, or lists of int32.

        samples: the view VIEW of the engine: the raw columns and ROW, in any order. Its columns are the same in every call.
        rows:    the ROW of every sample, ascending; the order of what is returned.
        """
        if not self._queries:
            self._queries = {name: self._engine.query(self._ids(samples, name)) for name in self._fields}
        places = _Places(rows)
        return {name: places.sort(query()) for name, query in self._queries.items()}

    def _ids(self, samples: ibis.Table, name: str) -> ibis.Table:
        column, field, max_rows = self._fields[name]
        cells = cells_of(samples, self._sides, column)
        if isinstance(field, Categorical) and field.hash:
            assert max_rows is not None, "the recipe was checked"
            return hashed_ids(cells, field, max_rows)
        return ids_of(cells, self._vocabularies[name], field)


class _Places:
    """Where in an ascending list of positions each position stands."""

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._rows = rows
        self._first = int(rows[0]) if len(rows) else 0
        span = int(rows[-1]) - self._first + 1 if len(rows) else 0
        self._table = None
        if span <= _SPARSE * len(rows):
            self._table = np.empty(span, dtype=np.int32)
            self._table[rows - self._first] = np.arange(len(rows), dtype=np.int32)

    def sort(self, found: pa.Table) -> pa.Array:
        """The column ID of `found` (ROW and ID, one row a position) in the order of the positions."""
        if found.num_rows != len(self._rows):
            raise RuntimeError(f"{found.num_rows} rows came back for {len(self._rows)}")
        positions = found[ROW].to_numpy()
        places = np.searchsorted(self._rows, positions) if self._table is None else self._table[positions - self._first]
        ids = found[ID].combine_chunks()
        if pa.types.is_integer(ids.type):
            ordered = np.empty(len(self._rows), dtype=np.int32)
            ordered[places] = ids.to_numpy()
            return pa.array(ordered)
        order = np.empty(len(self._rows), dtype=np.int64)
        order[places] = np.arange(len(self._rows))
        return ids.cast(pa.list_(pa.int32())).take(pa.array(order))
