"""Writing Parquet: shards of a fixed number of rows, and vocabularies; the same rows give the same bytes, however they come."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.manifest import SplitEntry, StoredFile

# What a reader takes at once: a shuffle in bounded memory is the better the more row groups it holds (perf/results/reader_cpu_2026-11.md).
ROW_GROUP = 16_384
# Dictionaries halve the files and cost no time in reading. The checksums of pages find a flipped bit, which would be another id.
PARQUET: dict[str, Any] = {"compression": "snappy", "use_dictionary": True, "write_page_checksum": True}
LABEL = "label"

VOCABULARY_SCHEMA = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])


def id_columns(multi_valued: dict[str, bool]) -> list[pa.Field]:
    """A column of ids for each field: int32, or a list of int32 where the field is multi-valued."""
    return [pa.field(name, pa.list_(pa.int32()) if several else pa.int32()) for name, several in multi_valued.items()]


def split_schema(multi_valued: dict[str, bool]) -> pa.Schema:
    """Columns of a shard: `label` int8, and the ids of each field."""
    return pa.schema([pa.field(LABEL, pa.int8()), *id_columns(multi_valued)])


def write_split(folder: Path, split: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows_per_shard: int) -> SplitEntry:
    """Write the rows of `batches`, however they are cut, as `split`/part-00000.parquet and so on, `rows_per_shard` in each but the last."""
    (folder / split).mkdir()
    shards: list[StoredFile] = []
    positives = 0
    row_groups = _row_groups(batches, schema, rows_per_shard)
    table = next(row_groups, None)
    while table is not None:
        path = folder / split / f"part-{len(shards):05d}.parquet"
        rows = 0
        with pq.ParquetWriter(path, schema, **PARQUET) as writer:
            while table is not None and rows < rows_per_shard:
                writer.write_table(table, row_group_size=ROW_GROUP)
                rows += table.num_rows
                positives += pc.sum(table[LABEL]).as_py()
                table = next(row_groups, None)
        shards.append(stored_file(folder, path, rows))
    return SplitEntry(rows=sum(shard.rows for shard in shards), positives=positives, shards=tuple(shards))


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows_per_shard: int) -> Iterator[pa.Table]:
    """The rows of `batches` cut into row groups, none of which goes over the end of a shard."""
    waiting: list[pa.Table] = []
    rows_waiting = 0
    room = rows_per_shard
    for batch in batches:
        waiting.append(pa.Table.from_batches([batch]).cast(schema))
        rows_waiting += batch.num_rows
        while rows_waiting >= min(ROW_GROUP, room):
            size = min(ROW_GROUP, room)
            table = pa.concat_tables(waiting)
            # In one piece, because where pages end depends on where pieces do.
            yield table.slice(0, size).combine_chunks()
            waiting = [table.slice(size)]
            rows_waiting -= size
            room = room - size or rows_per_shard
    if rows_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def write_vocabulary(folder: Path, field: str, table: pa.Table) -> StoredFile:
    """Write `table` (columns value, id, count) as vocabulary/<field>.parquet."""
    path = folder / "vocabulary" / f"{field}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.cast(VOCABULARY_SCHEMA), path, row_group_size=ROW_GROUP)
    return stored_file(folder, path, table.num_rows)


def stored_file(folder: Path, path: Path, rows: int) -> StoredFile:
    """The manifest's entry of `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(file=path.relative_to(folder).as_posix(), rows=rows, bytes=path.stat().st_size, sha256=digest)
