"""Statistics of prepared data: distribution of ids, bytes of the tables, and values that only some splits
have."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ham_dist.config.schema import TablePrecision
from ham_dist.config.units import NUMBER_BYTES
from ham_dist.data.engines.base import literal
from ham_dist.data.format.manifest import REDO, SPLITS, DataField, Manifest
from ham_dist.data.format.warnings import warnings_of
from ham_dist.errors import DataError

# An alarm is raised for a field if the share of its validation or test values that the model cannot know (id
# 0, or never in the training split) is more than this above the share of id 0 in training.
ALARM = 0.10
# Fractions (one in so many) of a field's ids, most frequent first, whose share of the values is computed.
HEADS = {"0.1%": 1000, "1%": 100, "10%": 10, "50%": 2}
# DuckDB's memory limit; above it, DuckDB spills to the temporary folder.
MEMORY = "1GB"


class _Statistics(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class SplitStatistics(_Statistics):
    """Statistics of one split."""

    rows: int
    positives: int
    label_rate: float | None
    """Share of positives; None if there are no rows."""


class FieldStatistics(_Statistics):
    """Statistics of one field.

    Shares are of a split's values: one per row, or several for a multi-valued field.
    """

    name: str
    rows: int
    """C_j, the rows of its table."""
    multi_valued: bool
    bytes: int
    """Bytes of its table with min(dim, C_j) columns, in `DatasetStatistics.precision`."""
    zero: dict[str, float]
    """Share of id 0 (missing and unknown values) in each split."""
    unseen: dict[str, float]
    """Share of ids other than 0 that are not in the training split, in validation and test."""
    head: dict[str, float]
    """Share of the training values that have one of the most frequent 0.1 %, 1 %, 10 % or 50 % (rounded up)
    of the ids 1 .. C_j - 1. The keys are those of HEADS."""
    ids_seen: int
    """Number of different ids other than 0 in the training split."""
    ids_seen_once: int
    """Number of these ids that appear once."""
    values: dict[str, int] = {}
    """Number of values in each split."""
    ids_from_training: bool = False
    """True if only values of the training split have ids, so that `unseen` is always 0: other values have id
    0."""


class DatasetStatistics(_Statistics):
    """Statistics of one data folder."""

    name: str
    seed: int
    dim: int
    """Embedding dim that `bytes` is computed for."""
    precision: TablePrecision
    """Data type that `bytes` is computed for."""
    splits: dict[str, SplitStatistics]
    rows_in: int
    rows_dropped: int
    rejected: dict[str, int]
    """Number of rejected raw lines by reason."""
    fields: list[FieldStatistics]
    alarms: list[str]
    """One message per field and split with many values that training lacks."""
    warnings: list[str] = []
    """Warnings of `prepare`."""

    @property
    def bytes(self) -> int:
        """Bytes of all tables."""
        return sum(field.bytes for field in self.fields)


def compute_statistics(
    folder: Path, manifest: Manifest, dim: int, precision: TablePrecision = "float32"
) -> DatasetStatistics:
    """Computes the statistics of prepared data.

    Reads the data once, one field at a time, in bounded memory (MEMORY, then it spills to disk). Time grows
    with the number of rows and fields.

    Args:
        folder: The data folder.
        manifest: Its manifest.
        dim: Embedding dim of the tables whose bytes are computed.
        precision: Data type of these tables.
    Raises:
        DataError: A file is missing, cannot be read, or does not have the SHA-256 in the manifest.
    """
    # Files are checked by SHA-256, because DuckDB does not verify the checksums of Parquet pages: a flipped
    # bit would silently change an id.
    manifest.check(folder, deep=True)
    for split in SPLITS:
        if split not in manifest.splits:
            raise DataError(
                f"{folder}: has no split {split!r}; its splits are {', '.join(manifest.splits)}\n  {REDO}"
            )
    with tempfile.TemporaryDirectory(prefix="ham-dist-") as spill:
        connection = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=spill)
        try:
            connection.raw_sql("SET enable_progress_bar = false")
            splits = _open(connection, folder, manifest)
            fields = [
                _field_statistics(field, splits, dim, NUMBER_BYTES[precision]).model_copy(
                    update={"ids_from_training": manifest.recipe is not None and field.vocabulary.rows > 0}
                )
                for field in manifest.fields
            ]
        except duckdb.Error as error:
            raise DataError(f"{folder}: cannot be read: {str(error).splitlines()[0]}") from None
        finally:
            connection.disconnect()
    return DatasetStatistics(
        name=manifest.name,
        seed=manifest.seed,
        dim=dim,
        precision=precision,
        splits={
            name: SplitStatistics(
                rows=split.rows,
                positives=split.positives,
                label_rate=split.positives / split.rows if split.rows else None,
            )
            for name, split in manifest.splits.items()
        },
        rows_in=manifest.rows_in,
        rows_dropped=manifest.rows_dropped,
        rejected=dict(manifest.rejected.reasons),
        fields=fields,
        alarms=[alarm for field in fields for alarm in _alarms(field)],
        warnings=warnings_of(manifest),
    )


def _open(connection: Any, folder: Path, manifest: Manifest) -> dict[str, ibis.Table]:
    """Rows of each split as a lazy table."""
    tables = {}
    for split in SPLITS:
        shards = manifest.splits[split].shards
        if shards:
            tables[split] = connection.read_parquet(
                [literal(folder / shard.file) for shard in shards], table_name=split
            )
            _check_columns(f"{folder}/{split}", tables[split].schema(), manifest)
        else:
            columns = [
                (field.name, pa.list_(pa.int32()) if field.multi_valued else pa.int32())
                for field in manifest.fields
            ]
            tables[split] = ibis.memtable(pa.schema(columns).empty_table())
    return tables


def _check_columns(where: str, found: ibis.Schema, manifest: Manifest) -> None:
    for field in manifest.fields:
        column = found.get(field.name)
        ids = column
        if field.multi_valued and column is not None:
            ids = column.value_type if column.is_array() else None
        if ids is None or not ids.is_int32():
            kind = "lists of int32" if field.multi_valued else "int32"
            raise DataError(
                f"{where}: the column {field.name} is {'missing' if column is None else column}; "
                f"expected {kind}\n  {REDO}"
            )


def _field_statistics(
    field: DataField, splits: dict[str, ibis.Table], dim: int, number_bytes: int
) -> FieldStatistics:
    found = _summary(field, splits).to_pyarrow().to_pylist()[0]
    found = {name: value or 0 for name, value in found.items()}  # a sum over no rows is null
    shares = {split: (found[f"{split}_values"] or 1) for split in SPLITS}
    return FieldStatistics(
        name=field.name,
        rows=field.rows,
        multi_valued=field.multi_valued,
        bytes=field.rows * min(dim, field.rows) * number_bytes,
        zero={split: found[f"{split}_zero"] / shares[split] for split in SPLITS},
        unseen={split: found[f"{split}_unseen"] / shares[split] for split in SPLITS[1:]},
        head={name: found[name] / shares["train"] for name in HEADS},
        ids_seen=found["seen"],
        ids_seen_once=found["once"],
        values={split: found[f"{split}_values"] for split in SPLITS},
    )


def _summary(field: DataField, splits: dict[str, ibis.Table]) -> ibis.Table:
    """Query for one row of counts.

    The ids are counted in each split, ranked by their count in training, and then added up.
    """
    values = []
    for split, table in splits.items():
        column = table[field.name].unnest() if field.multi_valued else table[field.name]
        values.append(table.select(id=column).mutate(split=ibis.literal(split)))
    together = ibis.union(*values)
    counted = together.group_by("id").aggregate(
        **{split: (together.split == split).sum() for split in SPLITS}
    )
    known = counted.id != 0
    placed = counted.mutate(place=ibis.row_number().over(order_by=[known.desc(), counted.train.desc()]))
    known, seen = placed.id != 0, placed.train > 0
    counts = {"seen": (known & seen).sum(), "once": (known & (placed.train == 1)).sum()}
    for name, part in HEADS.items():
        counts[name] = placed.train.sum(where=known & (placed.place < -(-(field.rows - 1) // part)))
    for split in SPLITS:
        counts |= {
            f"{split}_values": placed[split].sum(),
            f"{split}_zero": placed[split].sum(where=~known),
            f"{split}_unseen": placed[split].sum(where=known & ~seen),
        }
    return placed.aggregate(**counts)


def _alarms(field: FieldStatistics) -> Iterator[str]:
    for split, unseen in field.unseen.items():
        unknown = field.zero[split] + unseen
        if unknown > field.zero["train"] + ALARM:
            yield (
                f"field {field.name}: {unknown:.1%} of the {split} values are unknown "
                "or never in the training split, "
                f"where {field.zero['train']:.1%} are unknown (alarm at {ALARM:.0%} more)"
            )
