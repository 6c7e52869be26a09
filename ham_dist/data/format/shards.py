"""Writes Parquet shards and vocabularies. Equal rows give equal bytes, however they come in batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.format.manifest import StoredFile
from ham_dist.io.atomic import new_file
from ham_dist.io.hashing import sha256_of

# Rows that a reader reads at once. Small, because a shuffle in bounded memory gets better with the number of
# row groups that it holds (perf/results/reader_cpu_2026-11.md).
ROW_GROUP = 16_384
# Dictionaries halve the file size and do not slow down reading. Page checksums detect flipped bits, which
# would otherwise be read as different ids.
PARQUET: dict[str, Any] = {"compression": "snappy", "use_dictionary": True, "write_page_checksum": True}
LABEL = "label"

VOCABULARY_SCHEMA = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])


def id_columns(multi_valued: dict[str, bool]) -> list[pa.Field]:
    """Arrow column of each field's ids: int32, or a list of int32 if the field is multi-valued."""
    return [
        pa.field(name, pa.list_(pa.int32()) if several else pa.int32())
        for name, several in multi_valued.items()
    ]


def split_schema(multi_valued: dict[str, bool]) -> pa.Schema:
    """Schema of a shard: `label` int8, then the ids of each field."""
    return pa.schema([pa.field(LABEL, pa.int8()), *id_columns(multi_valued)])


def write_shard(
    folder: Path, file: str, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema
) -> tuple[StoredFile, int]:
    """Writes the rows of `batches` to a single file, atomically.

    Args:
        folder: Folder of the prepared data.
        file: Path of the file relative to `folder`.
        batches: The rows; the file does not depend on how they are split into batches.
        schema: Columns of the file.
    Returns:
        The manifest entry of the file, and the number of labels that are 1 (0 if `schema` has no label).
    """
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = positives = 0
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, **PARQUET) as writer:
        for table in _row_groups(batches, schema):
            writer.write_table(table, row_group_size=ROW_GROUP)
            rows += table.num_rows
            if LABEL in schema.names:
                positives += pc.sum(table[LABEL]).as_py()
    return stored_file(folder, path, rows), positives


def shard_name(split: str, number: int) -> str:
    """Path of shard `number` (from 0) of a split, relative to the folder."""
    return f"{split}/part-{number:05d}.parquet"


def _row_groups(batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of `batches` as one table per row group."""
    waiting: list[pa.Table] = []
    rows_waiting = 0
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        waiting.append(table.cast(schema))
        rows_waiting += batch.num_rows
        while rows_waiting >= ROW_GROUP:
            table = pa.concat_tables(waiting)
            # As a single chunk, because page boundaries depend on chunk boundaries.
            yield table.slice(0, ROW_GROUP).combine_chunks()
            waiting = [table.slice(ROW_GROUP)]
            rows_waiting -= ROW_GROUP
    if rows_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def stored_file(folder: Path, path: Path, rows: int) -> StoredFile:
    """The manifest entry of the file `path` in `folder`, which has `rows` rows."""
    return StoredFile(
        file=path.relative_to(folder).as_posix(),
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )
