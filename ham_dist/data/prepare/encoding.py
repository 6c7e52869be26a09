"""The pass that encodes: staged rows to Parquet shards of ids."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from ham_dist.data.encode.encoder import Encoder
from ham_dist.data.encode.expressions import Sides
from ham_dist.data.engines.base import Engine, Machine
from ham_dist.data.format.manifest import SPLITS, DataField, SplitEntry, StoredFile
from ham_dist.data.format.shards import LABEL, shard_name, split_schema, write_shard
from ham_dist.data.prepare.count import is_hashed
from ham_dist.data.prepare.stage import STAGED_LABEL, StagedSplit
from ham_dist.data.prepare.workdir import Work
from ham_dist.data.recipe.fields import AnyField
from ham_dist.data.recipe.load import Recipe
from ham_dist.io.progress import progress

log = logging.getLogger(__name__)

# Rows of a query with small vocabularies: enough to make its fixed cost (some milliseconds per field)
# negligible.
_ROWS_TOGETHER = 1_000_000
# Ids of one query as a share of the memory.
_IDS_SHARE = 0.1


class Encoding:
    """Encodes the staged rows of `recipe` as shards of `rows_per_shard` rows, written into `work`."""

    def __init__(
        self, recipe: Recipe, work: Work, engine: Engine, machine: Machine, rows_per_shard: int
    ) -> None:
        self._recipe, self._work, self._engine, self._machine = recipe, work, engine, machine
        self._rows_per_shard = rows_per_shard

    def encode(
        self,
        splits: Mapping[str, StagedSplit],
        sides: Sides,
        entries: Sequence[DataField],
        fields: Mapping[str, AnyField],
    ) -> dict[str, SplitEntry]:
        """Encodes and writes all shards that are not finished.

        Args:
            splits: Staged rows by split.
            sides: The side tables that the samples are joined with.
            entries: Manifest entries of the fields, with their vocabularies.
            fields: The recipe's fields, with the boundaries of numbers.
        Returns:
            Manifest entry of each split.
        """
        shards = [
            (split, number)
            for split in SPLITS
            for number in range(-(-splits[split].rows // self._rows_per_shard))
        ]
        self._write_unfinished(shards, splits, sides, entries, fields)
        return {
            split: self._entry(splits[split], [shard for shard in shards if shard[0] == split])
            for split in SPLITS
        }

    def _write_unfinished(
        self,
        shards: Sequence[tuple[str, int]],
        splits: Mapping[str, StagedSplit],
        sides: Sides,
        entries: Sequence[DataField],
        fields: Mapping[str, AnyField],
    ) -> None:
        encoder = self._encoder(
            {entry.name: self._work.data / entry.vocabulary.file for entry in entries}, sides, fields
        )
        schema = split_schema({entry.name: entry.multi_valued for entry in entries})
        runs = _unfinished_runs(
            shards,
            self._shards_together(entries),
            lambda split, number: self._work.record(_record_name(split, number)) is not None,
        )
        with (
            progress("encoding", sum(staged.rows for staged in splits.values()), log.info) as step,
            ThreadPoolExecutor(1) as pool,
        ):
            writing: Future[None] | None = None
            for split, numbers in runs:
                first = numbers[0] * self._rows_per_shard
                last = min((numbers[-1] + 1) * self._rows_per_shard, splits[split].rows)
                staged = splits[split].part(self._engine, first, last)
                table = pa.table({LABEL: staged.cells(STAGED_LABEL), **encoder.encode(staged)}).cast(schema)
                if writing is not None:
                    writing.result()
                writing = pool.submit(self._write, split, numbers, table, schema)
                step(last - first, last - first)
            if writing is not None:
                writing.result()

    def _encoder(
        self, vocabularies: Mapping[str, Path], sides: Sides, fields: Mapping[str, AnyField]
    ) -> Encoder:
        columns = {
            name: (self._recipe.column(name), field, self._recipe.max_rows_of(name))
            for name, field in fields.items()
        }
        tables = {
            name: self._engine.keep(self._engine.read_parquet([vocabularies[name]]))
            for name, field in fields.items()
            if not is_hashed(field)
        }
        return Encoder(self._engine, columns, tables, sides, self._machine.threads or os.cpu_count() or 1)

    def _shards_together(self, entries: Sequence[DataField]) -> int:
        """Number of shards that one query encodes.

        Each query builds a lookup of every whole vocabulary, which should not cost more than the lookups.
        """
        most = int(self._machine.memory * _IDS_SHARE / (4 * len(entries)) / self._rows_per_shard)
        wanted = max(_ROWS_TOGETHER, *(entry.rows for entry in entries)) // self._rows_per_shard
        return max(1, most if self._engine.long_queries else min(wanted, most))

    def _write(self, split: str, numbers: Sequence[int], table: pa.Table, schema: pa.Schema) -> None:
        for place, number in enumerate(numbers):
            rows = table.slice(place * self._rows_per_shard, self._rows_per_shard)
            stored, positives = write_shard(self._work.data, shard_name(split, number), [rows], schema)
            record = {"stored": stored.model_dump(), "positives": positives}
            self._work.done(_record_name(split, number), record)

    def _entry(self, staged: StagedSplit, shards: Sequence[tuple[str, int]]) -> SplitEntry:
        records = [self._work.record(_record_name(*shard)) for shard in shards]
        return SplitEntry(
            rows=staged.rows,
            positives=sum(record["positives"] for record in records),
            shards=tuple(StoredFile(**record["stored"]) for record in records),
        )


def _record_name(split: str, number: int) -> str:
    return f"shards/{split}-{number:05d}"


def _unfinished_runs(
    shards: Sequence[tuple[str, int]], together: int, finished: Callable[[str, int], bool]
) -> Iterator[tuple[str, list[int]]]:
    """Unfinished shards in runs of at most `together` consecutive shards of one split."""
    run: list[int] = []
    owner = ""
    for split, number in shards:
        if run and (split != owner or number != run[-1] + 1 or len(run) == together):
            yield owner, run
            run = []
        if not finished(split, number):
            owner = split
            run.append(number)
    if run:
        yield owner, run
