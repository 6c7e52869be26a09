"""Reads side files, whose columns are joined to the samples."""

from collections.abc import Sequence
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.encode.expressions import ROW
from ham_dist.data.engines.base import Engine
from ham_dist.data.raw.files import Rejections, repeated_key, sample_blocks
from ham_dist.data.raw.parse import parse
from ham_dist.data.recipe.fields import Format, Join


def read_side(
    engine: Engine,
    path: Path,
    join: Join,
    wanted: Sequence[str],
    format: Format,
    store: Path,
    rejections: Rejections,
) -> ibis.Table:
    """Reads a side file by way of a Parquet file.

    Args:
        engine: The engine that the returned table belongs to.
        path: The side file.
        join: Its section of the recipe.
        wanted: Columns to read, as strings.
        format: Format of the text.
        store: Path of the Parquet file to write.
        rejections: Counts rejected lines; they are also added to `rejections.kept`, as they are few.
    Returns:
        The columns `wanted`.
    Raises:
        DataError: A key appears twice, or too many lines are rejected; the message has file and line.
    """
    schema = pa.schema([(name, pa.string()) for name in wanted] + [(ROW, pa.int64())])
    with pq.ParquetWriter(store, schema) as writer:
        for block in sample_blocks(path, join.columns, format):
            rows = parse(block, join.columns, dict.fromkeys(wanted, "string"), format)
            rejections.add(len(rows.lines) + len(rows.rejected), rows.reasons(), rows.rejected)
            rejections.kept += rows.rejected
            writer.write_table(rows.table.append_column(ROW, pa.array(rows.lines)).cast(schema))
    rejections.check()
    side = engine.read_parquet([store])
    refuse_repeated(engine, side, join.key, path)
    return side.drop(ROW)


def refuse_repeated(engine: Engine, side: ibis.Table, key: str, path: Path) -> None:
    """Raises DataError if a key of a side file appears twice, because the join would duplicate samples."""
    counts = (
        side.filter(side[key].notnull())
        .group_by(key)
        .aggregate(count=lambda t: t.count(), first=lambda t: t[ROW].min(), last=lambda t: t[ROW].max())
    )
    rows = engine.query(counts.filter(counts["count"] > 1).order_by("first").limit(1))().to_pylist()
    if rows:
        row = rows[0]
        raise repeated_key(path, key, row[key], row["count"], row["first"], row["last"])
