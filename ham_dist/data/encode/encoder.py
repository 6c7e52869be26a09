"""Rows -> ids, field by field: the same for training data and for scoring.

A query for one field at a time holds the lookup of one field in memory, and moves no column but its own.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import ibis
import numpy as np
import pyarrow as pa

from ham_dist.data.encode.expressions import CELL, ID, ROW, Sides, cells_of, hashed_ids, ids_of
from ham_dist.data.engines.base import Engine
from ham_dist.data.recipe.fields import AnyField, Categorical, Numeric
from ham_dist.errors import DataError

# Beyond this many positions a row, the table from positions to places costs more than searching.
_SPARSE = 64


Made = tuple[str, AnyField, int | None]
"""The column that a field is made from, its settings, and the most rows of its table."""


class RawSamples(Protocol):
    """Some samples in order.

    columns: the raw columns that they have; the same in every call of an encoder.
    rows:    the ROW of each, ascending, int64.
    """

    columns: Collection[str]
    rows: np.ndarray[Any, np.dtype[np.int64]]

    def cells(self, column: str) -> pa.Array:
        """One of the columns, in the order of `rows`; strings, numbers, lists of strings, or a dictionary of one of the first two."""

    def view(self) -> ibis.Table:
        """All of the columns and ROW, in any order, as the view `Encoder.VIEW` of the engine."""


class Encoder:
    """The ids of fields, by their vocabularies.

    Args:
        fields: The column, settings and most rows of each.
        vocabularies: Of each field but the hashed ones, kept by the engine.
        sides: Side files, for the fields that the samples lack.
        threads: Fields that are worked on at a time, where cells are looked up in this process.
    Raises:
        DataError: A field of quantiles lacks its boundaries.
    """

    VIEW = "samples"

    def __init__(
        self,
        engine: Engine,
        fields: Mapping[str, Made],
        vocabularies: Mapping[str, ibis.Table],
        sides: Sides = (),
        threads: int = 1,
    ) -> None:
        self._engine, self._fields, self._vocabularies, self._sides, self._threads = (
            engine,
            fields,
            vocabularies,
            sides,
            threads,
        )
        for name, (_, field, _) in fields.items():
            if isinstance(field, Numeric) and field.transform == "quantile" and field.boundaries is None:
                raise DataError(
                    f"field {name}: the recipe has no boundaries for its quantiles; expected those that prepare found\n"
                    "  Use the recipe in the manifest.json of the prepared data."
                )
        self._queries: dict[str, Callable[[], pa.Table]] = {}

    def encode(self, samples: RawSamples) -> dict[str, pa.Array]:
        """A column of ids for each field, in the order of the samples: int32, or lists of int32."""
        # Looking up distinct cells takes a query for each field and each call.
        found = {} if self._engine.long_queries else self._by_cells(samples)
        if rest := self._fields.keys() - found.keys():
            view, places = samples.view(), _Places(samples.rows)
            for name in rest:
                query = self._query(name, cells_of(view, self._sides, self._fields[name][0]))
                found[name] = places.sort(query())
        return {name: found[name] for name in self._fields}

    def _by_cells(self, samples: RawSamples) -> dict[str, pa.Array]:
        """Ids of the fields whose column the samples have. Cells repeat; each distinct one is looked up once."""
        alone = threading.Lock()

        def ids(name: str) -> pa.Array:
            cells = samples.cells(self._fields[name][0])
            distinct, places = cells, None
            if not pa.types.is_list(cells.type):
                cells = cells if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
                distinct = pa.concat_arrays([cells.dictionary, pa.nulls(1, cells.dictionary.type)])
                places = cells.indices.fill_null(len(distinct) - 1)
            rows = np.arange(len(distinct))
            with alone:
                shown = self._engine.show_arrow(f"cells_{name}", pa.table({ROW: rows, CELL: distinct}))
                found = self._query(name, shown)()
            in_order = _Places(rows).sort(found)
            return in_order if places is None else in_order.take(places)

        names = [name for name, (column, _, _) in self._fields.items() if column in samples.columns]
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(names, pool.map(ids, names), strict=True))

    def _query(self, name: str, cells: ibis.Table) -> Callable[[], pa.Table]:
        """ROW and ID of a field's `cells` (ROW and CELL), of which name and columns are the same in every call."""
        if name not in self._queries:
            self._queries[name] = self._engine.query(self._ids(cells, name))
        return self._queries[name]

    def _ids(self, cells: ibis.Table, name: str) -> ibis.Table:
        _, field, max_rows = self._fields[name]
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
        places = (
            np.searchsorted(self._rows, positions)
            if self._table is None
            else self._table[positions - self._first]
        )
        ids = found[ID].combine_chunks()
        if pa.types.is_integer(ids.type):
            ordered = np.empty(len(self._rows), dtype=np.int32)
            ordered[places] = ids.to_numpy()
            return pa.array(ordered)
        order = np.empty(len(self._rows), dtype=np.int64)
        order[places] = np.arange(len(self._rows))
        return ids.cast(pa.list_(pa.int32())).take(pa.array(order))
