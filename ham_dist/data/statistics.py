"""A look at prepared data: how ids are spread, what the tables would cost, and whether the splits hold the same values."""

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

# Of the validation or test values of a field: where the share that training cannot have taught (id 0, or never in the training split) is greater by
# this than the share of id 0 in training, there is an alarm.
ALARM = 0.10
# The most frequent of a field's ids (one in so many) whose share of the values is told: the curve from head to tail.
HEADS = {"0.1%": 1000, "1%": 100, "10%": 10, "50%": 2}
# What DuckDB may hold in memory; beyond it, it spills to the temporary folder.
MEMORY = "1GB"


class _Statistics(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class SplitStatistics(_Statistics):
    """One split."""

    rows: int
    positives: int
    label_rate: float | None
    """Share of positives; None without rows."""


class FieldStatistics(_Statistics):
    """One field. Shares are of a split's values: one a row, or several where the field is multi-valued."""

    name: str
    rows: int
    """C_j of its table."""
    multi_valued: bool
    bytes: int
    """Of its table, min(width, C_j) columns wide, in the look's precision."""
    zero: dict[str, float]
    """Of each split: share of id 0, which stands for missing and unknown values."""
    unseen: dict[str, float]
    """Of validation and test: share of ids other than 0 that the training split lacks."""
    head: dict[str, float]
    """Share of the training values that the most frequent 0.1 %, 1 %, 10 % and 50 % of the ids 1 .. C_j - 1 (rounded up) cover: the keys of HEADS."""
    ids_seen: int
    """Ids other than 0 in the training split."""
    ids_seen_once: int
    """Those of them that are there once."""
    values: dict[str, int] = {}
    """Number of values in each split."""
    ids_from_training: bool = False
    """True where the training split alone got ids, so that `unseen` is 0 whatever the data: unknown values have id 0."""


class DatasetStatistics(_Statistics):
    """One data folder."""

    name: str
    seed: int
    width: int
    """Columns that `bytes` are counted for."""
    precision: TablePrecision
    """Of the numbers that `bytes` are counted for."""
    splits: dict[str, SplitStatistics]
    rows_in: int
    rows_dropped: int
    rejected: dict[str, int]
    """Raw lines that could not be read, by reason."""
    fields: list[FieldStatistics]
    alarms: list[str]
    """Where validation or test holds many ids that training lacks."""
    warnings: list[str] = []
    """Those of `prepare`."""

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return sum(field.bytes for field in self.fields)


def compute_statistics(
    folder: Path, manifest: Manifest, width: int, precision: TablePrecision = "float32"
) -> DatasetStatistics:
    """Read the prepared data in `folder` once through, a field at a time, in bounded memory (MEMORY, then disk; time grows with rows and fields).

    width, precision: of the tables whose bytes are counted.
    raises:           DataError if a file is missing or its bytes are not those that the manifest vouches for, or if it cannot be read.
    """
    # By sha256, since DuckDB does not verify the checksums of Parquet pages: a flipped bit would be another id.
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
                _field_statistics(field, splits, width, NUMBER_BYTES[precision]).model_copy(
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
        width=width,
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
    """The rows of each split, not read yet."""
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
                f"{where}: the column {field.name} is {'missing' if column is None else column}; expected {kind}\n  {REDO}"
            )


def _field_statistics(
    field: DataField, splits: dict[str, ibis.Table], width: int, number_bytes: int
) -> FieldStatistics:
    found = _summary(field, splits).to_pyarrow().to_pylist()[0]
    found = {name: value or 0 for name, value in found.items()}  # a sum over nothing is null
    shares = {split: (found[f"{split}_values"] or 1) for split in SPLITS}
    return FieldStatistics(
        name=field.name,
        rows=field.rows,
        multi_valued=field.multi_valued,
        bytes=field.rows * min(width, field.rows) * number_bytes,
        zero={split: found[f"{split}_zero"] / shares[split] for split in SPLITS},
        unseen={split: found[f"{split}_unseen"] / shares[split] for split in SPLITS[1:]},
        head={name: found[name] / shares["train"] for name in HEADS},
        ids_seen=found["seen"],
        ids_seen_once=found["once"],
        values={split: found[f"{split}_values"] for split in SPLITS},
    )


def _summary(field: DataField, splits: dict[str, ibis.Table]) -> ibis.Table:
    """One row of counts: the ids of all splits are counted by split, placed by how often training has them, and added up."""
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
        untaught = field.zero[split] + unseen
        if untaught > field.zero["train"] + ALARM:
            yield (
                f"field {field.name}: {untaught:.1%} of the {split} values are unknown or never in the training split, "
                f"where {field.zero['train']:.1%} are unknown (alarm at {ALARM:.0%} more)"
            )
