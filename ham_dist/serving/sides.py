"""Joins the columns of side files to records, as a left join: a key without a line has missing values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ham_dist.data.encode.columns import Kind
from ham_dist.data.encode.record_files import RecordFile, lacking_columns, refuse_rejected, require_columns
from ham_dist.data.raw.blocks import COMPRESSED
from ham_dist.data.raw.files import repeated_key, sample_blocks
from ham_dist.data.raw.parse import parse
from ham_dist.data.recipe.fields import Format, Join
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError


class Side(NamedTuple):
    """A side file in memory.

    Attributes:
        key: Name of the key's column.
        keys: The keys, (n,) strings, each once.
        columns: The other columns, (n,) strings each, by name.
    """

    key: str
    keys: pa.Array
    columns: Mapping[str, pa.Array]


class SideFiles:
    """The side files of a recipe. Each is read once, when a file of records lacks a column of it.

    Args:
        recipe: The recipe; None has no side files.
        folder: Folder of the side files.
    """

    def __init__(self, recipe: Recipe | None, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._kept: dict[tuple[str, tuple[str, ...]], Side] = {}

    def plan(self, file: RecordFile, kinds: Mapping[str, Kind]) -> tuple[dict[str, Kind], list[Side]]:
        """Returns the columns to read from `file`, and the side files that have the others, in their order.

        Args:
            kinds: Content of the columns that the fields are made from.
        Raises:
            DataError: A column is in neither, or a side file cannot be read.
        """
        lacking = [column for column in kinds if column not in file.columns]
        joins: list[tuple[Join, list[str]]] = []
        for join in reversed(self._recipe.joins if self._recipe is not None else ()):
            columns = [column for column in join.columns if column in lacking and column != join.key]
            if columns:
                lacking = [column for column in lacking if column not in columns]
                if join.key not in file.columns:
                    lacking.append(join.key)
                joins.append((join, columns))
        require_columns(file.path, file.columns, lacking)
        read = {column: kind for column, kind in kinds.items() if column in file.columns}
        for join, _ in joins:
            if join.key in file.columns:
                read.setdefault(join.key, "text")
        return read, [self._side(file, join, columns) for join, columns in reversed(joins)]

    def _side(self, file: RecordFile, join: Join, columns: Sequence[str]) -> Side:
        place = (join.file, tuple(columns))
        if place not in self._kept:
            assert self._recipe is not None, "joins come from a recipe"
            candidates = [self._folder / f"{join.file}{suffix}" for suffix in ("", *COMPRESSED)]
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                raise DataError(
                    f"{lacking_columns(file.path, file.columns, [join.key, *columns])}\n"
                    f"  The recipe takes these from {join.file}: put that file into {self._folder}, "
                    "or give Parquet that has them."
                )
            self._kept[place] = _read(path, join, columns, self._recipe.format)
        return self._kept[place]


def joined(table: pa.Table, sides: Sequence[Side]) -> pa.Table:
    """Returns the records with the columns of `sides`, joined in that order."""
    for side in sides:
        rows = pc.index_in(table[side.key], value_set=side.keys, skip_nulls=True).combine_chunks()
        for name, values in side.columns.items():
            table = table.append_column(name, values.take(rows))
    return table


def _read(path: Path, join: Join, columns: Sequence[str], format: Format) -> Side:
    wanted = dict.fromkeys([join.key, *columns], "string")
    tables = [pa.schema([(name, pa.string()) for name in wanted]).empty_table()]
    lines = [np.empty(0, np.int64)]
    for block in sample_blocks(path, join.columns, format):
        rows = parse(block, join.columns, wanted, format)
        refuse_rejected(path, block, rows, columns=len(join.columns))
        tables.append(rows.table)
        lines.append(rows.lines)
    table = pa.concat_tables(tables).combine_chunks()
    keys = _column(table, join.key)
    _refuse_repeated(path, join.key, keys, np.concatenate(lines))
    return Side(join.key, keys, {name: _column(table, name) for name in columns})


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def _refuse_repeated(path: Path, name: str, keys: pa.Array, lines: np.ndarray[Any, Any]) -> None:
    """Raises DataError if a key appears twice, because a record would have two rows."""
    if pc.count_distinct(keys).as_py() == len(keys) - keys.null_count:
        return
    texts = keys.to_pylist()
    counts = Counter(text for text in texts if text is not None)
    key, count = next((key, count) for key, count in counts.items() if count > 1)
    places = [line for line, text in zip(lines.tolist(), texts, strict=True) if text == key]
    raise repeated_key(path, name, key, count, places[0], places[-1])
