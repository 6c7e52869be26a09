"""Writing Parquet: shards of a fixed number of rows, and vocabularies; the same rows give the same bytes, however they come."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.format.manifest import StoredFile
from ham_dist.io.atomic import new_file
from ham_dist.io.hashing import sha256_of

# What a reader takes at once: a shuffle in bounded memory is the better the more row groups it holds (perf/results/reader_cpu_2026-11.md).
ROW_GROUP = 16_384
# Dictionaries halve the files and cost no time in reading. The checksums of pages find a flipped bit, which would be another id.
PARQUET: dict[str, Any] = {"compression": "snappy", "use_dictionary": True, "write_page_checksum": True}
LABEL = "label"

VOCABULARY_SCHEMA = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])


def id_columns(multi_valued: dict[str, bool]) -> list[pa.Field]:
    """A column of ids for each field: int32, or a list of int32 where the field is multi-valued."""
    return [
        pa.field(name, pa.list_(pa.int32()) if several else pa.int32())
        for name, several in multi_valued.items()
    ]


def split_schema(multi_valued: dict[str, bool]) -> pa.Schema:
    """Columns of a shard: `label` int8, and the ids of each field."""
    return pa.schema([pa.field(LABEL, pa.int8()), *id_columns(multi_valued)])


def write_shard(
    folder: Path, file: str, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema
) -> tuple[StoredFile, int]:
    """Write the rows of `batches`, however they are cut, as the one file `file` of `folder`: it is there whole or not at all.

    returns: its manifest entry, and how many of its labels are 1 (0 where `schema` has no label).
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
    """Where shard `number` (from 0) of a split lies in the folder."""
    return f"{split}/part-{number:05d}.parquet"


def _row_groups(batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of `batches` cut into row groups."""
    waiting: list[pa.Table] = []
    rows_waiting = 0
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        waiting.append(table.cast(schema))
        rows_waiting += batch.num_rows
        while rows_waiting >= ROW_GROUP:
            table = pa.concat_tables(waiting)
            # In one piece, because where pages end depends on where pieces do.
            yield table.slice(0, ROW_GROUP).combine_chunks()
            waiting = [table.slice(ROW_GROUP)]
            rows_waiting -= ROW_GROUP
    if rows_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def stored_file(folder: Path, path: Path, rows: int) -> StoredFile:
    """The manifest's entry of `path`."""
    return StoredFile(
        file=path.relative_to(folder).as_posix(),
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )
