"""Reads the row groups of a split's shards one at a time, and checks them; no faulty row gets past it."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.format.manifest import REDO, DataField, Manifest, require_own_file
from ham_dist.data.format.shards import LABEL, split_schema
from ham_dist.data.reader.halves import Half, in_half
from ham_dist.data.reader.order import RowRange
from ham_dist.data.reader.rows import ID_TYPE, Array, Ragged, RowBlock, offsets_of
from ham_dist.errors import DataError
from ham_dist.io.paths import is_local, open_file

# Serialized size of the parsed footers that are cached; they take about three times as much memory. It is
# enough for the footers of 250 million rows of 40 columns.
FOOTER_BYTES = 64 << 20


class RowGroups:
    """The row groups of one split, numbered from 0 in the order of the shards.

    The constructor reads and checks every footer, but no rows.

    Args:
        folder: Prepared data.
        manifest: Its manifest.
        split: Name of the split.
        half: Leave out the rows of the other half; None keeps all rows.
    Raises:
        DataError: A shard is missing or damaged, or its columns or number of rows differ from the manifest.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, split: str, half: Half | None = None) -> None:
        self.fields = manifest.fields
        self._half = half
        self._schema = split_schema({field.name: field.multi_valued for field in manifest.fields})
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = Lock()
        self._paths: list[str] = []
        sizes: list[Array] = []
        for shard in manifest.splits[split].shards:
            path = f"{folder}/{shard.file}"
            with _as_data_error(path):
                require_own_file(folder, shard.file)
            with _as_data_error(path), self._open(path) as file:
                footer = file.metadata
                self._check_columns(path, file.schema_arrow)
            if footer.num_rows != shard.rows:
                raise DataError(
                    f"{path}: has {footer.num_rows:,} rows; expected {shard.rows:,} by the manifest\n  {REDO}"
                )
            self._paths.append(path)
            sizes.append(
                np.array(
                    [footer.row_group(number).num_rows for number in range(footer.num_row_groups)],
                    dtype=np.int64,
                )
            )
        whole = np.concatenate([np.empty(0, dtype=np.int64), *sizes])
        self._edges = np.concatenate([[0], np.cumsum(whole)])  # of the row groups, in rows of the split
        self.sizes = (
            whole
            if half is None
            else np.array([self._in_half(group).sum() for group in range(len(whole))], dtype=np.int64)
        )
        """(row groups,) int64: rows of each row group, of the half only."""
        self._first_groups = np.cumsum([0, *map(len, sizes)])[:-1]  # of each shard
        self._first_rows = np.concatenate(
            [np.empty(0, dtype=np.int64), *(np.cumsum(of_shard) - of_shard for of_shard in sizes)]
        )  # in its shard

    @property
    def rows(self) -> int:
        """Number of rows of the split."""
        return int(self.sizes.sum())

    def all(self) -> list[RowRange]:
        """Ranges of the whole split, for `read`."""
        return [RowRange(group, 0, size) for group, size in enumerate(self.sizes.tolist())]

    def read(self, ranges: Sequence[RowRange]) -> RowBlock:
        """The rows of `ranges`, concatenated. Row groups are read whole, one at a time.

        Raises:
            DataError: A shard is missing or damaged, an id is outside [0, C_j), or a label is neither 0 nor
                1. The message names shard, row, field and value.
        """
        builder = _BlockBuilder(self.fields, sum(part.last - part.first for part in ranges))
        for part in ranges:
            shard = self._shard_of(part.group)
            table = self._read_group(
                self._paths[shard], part.group - int(self._first_groups[shard]), self._schema.names
            )
            start = int(self._first_rows[part.group])
            rows: Sequence[int] | Array = range(start, start + len(table))
            if self._half is not None:
                mask = self._in_half(part.group)
                table, rows = table.filter(pa.array(mask)), start + np.flatnonzero(mask)
            builder.add(
                table.slice(part.first, part.last - part.first),
                self._paths[shard],
                rows[part.first : part.last],
            )
        return builder.block()

    def only_label(self) -> int | None:
        """Returns the label of all rows if it is the same one, else None. Stops at the second label."""
        seen: set[int] = set()
        for group in range(len(self.sizes)):
            shard = self._shard_of(group)
            labels = self._read_group(self._paths[shard], group - int(self._first_groups[shard]), [LABEL])
            if self._half is not None:
                labels = labels.filter(pa.array(self._in_half(group)))
            seen |= set(labels[LABEL].unique().to_pylist())
            if len(seen) > 1:
                return None
        return next(iter(seen), None)

    def _in_half(self, group: int) -> Array:
        assert self._half is not None, "whole splits have no halves"
        return in_half(int(self._edges[group]), int(self._edges[group + 1]), self._half)

    def _shard_of(self, group: int) -> int:
        return int(np.searchsorted(self._first_groups, group, side="right")) - 1

    def _read_group(self, path: str, number: int, columns: Sequence[str]) -> pa.Table:
        with _as_data_error(path), self._open(path) as file:
            # One thread reads a million rows per second; more threads would take cores from the training.
            return file.read_row_group(number, columns=list(columns), use_threads=False).select(columns)

    def _open(self, path: str) -> pq.ParquetFile:
        # A local file is opened by name: Arrow then reads it without holding the GIL.
        source: Any = path if is_local(path) else open_file(path, "rb")
        file = pq.ParquetFile(
            source,
            metadata=self._footers.get(path),
            pre_buffer=not is_local(path),
            page_checksum_verification=True,
        )
        self._keep_footer(path, file.metadata)
        return file

    def _keep_footer(self, path: str, footer: pq.FileMetaData) -> None:
        """Cache the most recently used footers: parsing one can take as long as reading a row group."""
        with self._lock:  # several passes over one split can run at a time
            self._footers[path] = footer
            self._footers.move_to_end(path)
            while (
                len(self._footers) > 1
                and sum(kept.serialized_size for kept in self._footers.values()) > FOOTER_BYTES
            ):
                self._footers.popitem(last=False)

    def _check_columns(self, path: str, found: pa.Schema) -> None:
        for column in self._schema:
            if column.name not in found.names:
                raise DataError(
                    f"{path}: has no column {column.name}; its columns are {', '.join(found.names)}\n  {REDO}"
                )
            type = found.field(column.name).type
            if type != column.type:
                raise DataError(
                    f"{path}: column {column.name} is {type}; expected {column.type} by the manifest\n"
                    f"  {REDO}"
                )


class _BlockBuilder:
    """Builds a RowBlock of a known number of rows from several tables."""

    def __init__(self, fields: Sequence[DataField], rows: int) -> None:
        self._fields = fields
        self._ids = np.empty((rows, sum(not field.multi_valued for field in fields)), dtype=ID_TYPE)
        self._labels = np.empty(rows, dtype=np.float32)
        nothing = np.empty(0, dtype=ID_TYPE)
        self._ragged = {field.name: [(nothing, nothing)] for field in fields if field.multi_valued}
        self._filled = 0

    def add(self, table: pa.Table, path: str, rows: Sequence[int] | Array) -> None:
        """Check and add the rows of `table`, which are the `rows` of the file `path`."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            if column.null_count:
                raise DataError(
                    f"{path}: column {name} has {column.null_count:,} null values; expected none\n  {REDO}"
                )
        filled = slice(self._filled, self._filled + table.num_rows)
        labels = _numbers(table[LABEL].combine_chunks())
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            raise DataError(
                f"{path}: label {labels[wrong][0]} in row {rows[int(wrong.argmax())]:,}; expected 0 or 1\n"
                f"  {REDO}"
            )
        self._labels[filled] = labels
        single = 0
        for field in self._fields:
            if field.multi_valued:
                ids, lengths = _lists(path, field.name, table[field.name])
                self._ragged[field.name].append((ids, lengths))
            else:
                ids, lengths = _numbers(table[field.name].combine_chunks()), None
                self._ids[filled, single] = ids
                single += 1
            place = _outside(ids, field.rows)
            if place is not None:
                row = rows[
                    place if lengths is None else int(np.searchsorted(np.cumsum(lengths), place, "right"))
                ]
                raise DataError(
                    f"{path}: field {field.name} has id {ids[place]} in row {row:,};"
                    f" expected 0 to {field.rows - 1}\n  {REDO}"
                )
        self._filled = filled.stop

    def block(self) -> RowBlock:
        """The rows added."""
        ragged = (
            Ragged(
                np.concatenate([values for values, _ in parts]),
                offsets_of(np.concatenate([lengths for _, lengths in parts])),
            )
            for parts in self._ragged.values()
        )
        return RowBlock(self._ids, tuple(ragged), self._labels)


def _lists(path: str, name: str, column: pa.ChunkedArray) -> tuple[Array, Array]:
    """Concatenated values of all lists, and the length of each list."""
    lists = column.combine_chunks()
    # Not .values and .offsets: those ignore the slice and show the array's whole buffer.
    flat = lists.flatten()
    if flat.null_count:
        raise DataError(
            f"{path}: column {name} has {flat.null_count:,} null values within its lists; expected none\n"
            f"  {REDO}"
        )
    return _numbers(flat), _numbers(lists.value_lengths())


def _numbers(column: pa.Array) -> Array:
    """A column without nulls as a NumPy array, not copied."""
    # to_numpy() would load pandas, which takes a quarter of a second on each rank.
    return np.from_dlpack(column)


def _outside(ids: Array, rows: int) -> int | None:
    """Position of the first id outside [0, rows); None if there is none."""
    # Read as unsigned, a negative id is larger than any table, so one comparison finds both.
    unsigned = ids.view(np.uint32)
    return int((unsigned >= rows).argmax()) if len(ids) and unsigned.max() >= rows else None


@contextmanager
def _as_data_error(path: str) -> Iterator[None]:
    """Turns errors of reading the file `path` into DataError."""
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]})\n  {REDO}") from None
    except OSError as error:
        if error.errno is None:  # raised by Arrow for bytes that it cannot decode
            raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]})\n  {REDO}") from None
        # Arrow's own text repeats the path.
        reason = os.strerror(error.errno) if is_local(path) else error.strerror
        raise DataError(f"{path}: cannot be read ({reason})\n  {REDO}") from None
