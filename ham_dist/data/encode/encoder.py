"""Encodes the raw values of training data as ids, one field at a time.

`serving/fields.py` does the same for single cells; tests compare both.

A query per field keeps only that field's lookup table in memory, and moves only that field's column.
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

# Above this many positions per row, a table of positions costs more than a binary search.
_SPARSE = 64


Made = tuple[str, AnyField, int | None]
"""Column that a field is made from, its settings, and the maximum number of rows of its table."""


class RawSamples(Protocol):
    """Raw samples to encode, in order.

    Attributes:
        columns: Raw columns of the samples; the same in every call of an encoder.
        rows: ROW of each sample, ascending, (n,) int64.
    """

    columns: Collection[str]
    rows: np.ndarray[Any, np.dtype[np.int64]]

    def cells(self, column: str) -> pa.Array:
        """Returns one column.

        Returns:
            (n,) strings, numbers or lists of strings, in the order of `rows`. Strings and numbers may be
            dictionary-encoded.
        """

    def view(self) -> ibis.Table:
        """Returns all columns and ROW, in any row order, as the engine's view named `Encoder.VIEW`."""


class Encoder:
    """Encodes fields as ids, using their vocabularies.

    Args:
        engine: The engine that runs the queries.
        fields: Field name -> column, settings and maximum number of rows.
        vocabularies: Field name -> vocabulary, as a table of the engine; for all fields without `hash`.
        sides: Side files, for columns that the samples lack.
        threads: Number of fields that are encoded in parallel, if the engine runs in this process.
    Raises:
        DataError: A field with quantiles has no boundaries.
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
                    f"field {name}: the recipe has no boundaries for its quantiles; "
                    "expected those that prepare computed\n"
                    "  Use the recipe in the manifest.json of the prepared data."
                )
        self._queries: dict[str, Callable[[], pa.Table]] = {}

    def encode(self, samples: RawSamples) -> dict[str, pa.Array]:
        """Encodes the samples.

        Returns:
            Field name -> ids, (n,) int32 or lists of int32, in the order of the samples.
        """
        # Looking up distinct cells needs one query per field and call, which is slow where queries start
        # slowly.
        found = {} if self._engine.long_queries else self._by_cells(samples)
        if rest := self._fields.keys() - found.keys():
            view, places = samples.view(), _Places(samples.rows)
            for name in rest:
                query = self._query(name, cells_of(view, self._sides, self._fields[name][0]))
                found[name] = places.sort(query())
        return {name: found[name] for name in self._fields}

    def _by_cells(self, samples: RawSamples) -> dict[str, pa.Array]:
        """Ids of the fields whose column the samples have. Each distinct cell is looked up once, as cells
        repeat."""
        engine_lock = threading.Lock()

        def ids(name: str) -> pa.Array:
            cells = samples.cells(self._fields[name][0])
            distinct, places = cells, None
            if not pa.types.is_list(cells.type):
                cells = cells if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
                distinct = pa.concat_arrays([cells.dictionary, pa.nulls(1, cells.dictionary.type)])
                places = cells.indices.fill_null(len(distinct) - 1)
            rows = np.arange(len(distinct))
            with engine_lock:
                shown = self._engine.show_arrow(f"cells_{name}", pa.table({ROW: rows, CELL: distinct}))
                found = self._query(name, shown)()
            in_order = _Places(rows).sort(found)
            return in_order if places is None else in_order.take(places)

        names = [name for name, (column, _, _) in self._fields.items() if column in samples.columns]
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(names, pool.map(ids, names), strict=True))

    def _query(self, name: str, cells: ibis.Table) -> Callable[[], pa.Table]:
        """Query for ROW and ID of a field's `cells` (ROW and CELL).

        The name and the columns of `cells` are the same in every call, so the query is compiled once.
        """
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
    """Index of each position in an ascending array of positions."""

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._rows = rows
        self._first = int(rows[0]) if len(rows) else 0
        span = int(rows[-1]) - self._first + 1 if len(rows) else 0
        self._table = None
        if span <= _SPARSE * len(rows):
            self._table = np.empty(span, dtype=np.int32)
            self._table[rows - self._first] = np.arange(len(rows), dtype=np.int32)

    def sort(self, found: pa.Table) -> pa.Array:
        """Returns the column ID of `found` (ROW and ID, one row per position) in the order of the
        positions."""
        if found.num_rows != len(self._rows):
            raise RuntimeError(f"the query returned {found.num_rows} rows; expected {len(self._rows)}")
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
