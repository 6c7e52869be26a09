"""Prepared shards -> batches of this rank, whatever the world size the same global batches.

A split lies in memory as a few long arrays, 4 bytes an id, and a batch is a gather from them; no Python runs a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.paths import open_file
from ham_dist.data.batch import Batch
from ham_dist.data.manifest import REDO, FieldEntry, Manifest
from ham_dist.data.shards import LABEL, split_schema
from ham_dist.errors import DataError

# TorchRec and FBGEMM take int32 and int64 ids alike, and widen them between the all-to-all and the kernel: int32 halves what is held and sent.
ID_TYPE = torch.int32


@dataclass(frozen=True)
class _SingleValued:
    """Neighbouring fields of one id a row: ids (fields, rows)."""

    ids: torch.Tensor

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KJT values and lengths of `rows`, field after field."""
        values = self.ids.index_select(1, rows).reshape(-1)
        return values, torch.ones_like(values)


@dataclass(frozen=True)
class _MultiValued:
    """A field of any number of ids a row: row i has ids[offsets[i] : offsets[i + 1]]."""

    ids: torch.Tensor
    offsets: torch.Tensor

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KJT values and lengths of `rows`."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = lengths.cumsum(0)
        # The n-th value of the batch lies at n + (start of its row in the split - start of its row in the batch).
        places = torch.arange(int(ends[-1]) if len(ends) else 0) + torch.repeat_interleave(starts - ends + lengths, lengths)
        return self.ids[places], lengths.to(ID_TYPE)


def rows_of_rank(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row, and last row plus one, of a rank's part of a global batch of `rows` rows; the parts follow one another and cover it.

    Cut at multiples of 16 rows where every rank then gets some, else of the largest power of two that allows it. Matrix kernels work in blocks of a
    few rows and treat what is left over differently, so only with whole blocks does a row's result not depend on which rank has it.
    """
    block = next((block for block in (16, 8, 4, 2) if rows >= (world_size - 1) * block + 1), 1)
    blocks = -(-rows // block)
    return min(rows, blocks * rank // world_size * block), min(rows, blocks * (rank + 1) // world_size * block)


class Split:
    """One of train, validation, test, held in memory. `open_split` makes it."""

    def __init__(self, fields: list[FieldEntry], blocks: list[_SingleValued | _MultiValued], labels: torch.Tensor) -> None:
        self.fields = fields
        self._names = [field.name for field in fields]
        self._blocks = blocks
        self._labels = labels

    @property
    def rows(self) -> int:
        """Samples of the split."""
        return len(self._labels)

    def steps(self, batch_size: int, keep_last: bool) -> int:
        """Global batches of one pass; the last, incomplete one counts where `keep_last` is set."""
        return -(-self.rows // batch_size) if keep_last else self.rows // batch_size

    def batches(
        self, batch_size: int, *, rank: int, world_size: int, order: tuple[int, int] | None, keep_last: bool, start: int = 0
    ) -> Iterator[Batch]:
        """This rank's part of each global batch of one pass.

        batch_size: rows of a global batch, over all ranks. Global batches do not depend on the world size.
        rank, world_size: this rank gets the rows that `rows_of_rank` says.
        order:      (seed, epoch) shuffles all rows in an order that the two determine; None is file order.
        keep_last:  whether the last batch comes though it is incomplete; with fewer rows than ranks, some ranks get an empty batch then.
        start:      batches to skip, at no cost: the pass goes on as if they had been taken.
        raises:     DataError if a global batch has fewer rows than there are ranks, or the split has no whole batch.
        """
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size} ranks: must be from 0 to {world_size - 1}")
        if world_size > batch_size:
            raise DataError(f"batch size {batch_size}: fewer rows than the {world_size} ranks that share them\n  Set it to at least {world_size}.")
        steps = self.steps(batch_size, keep_last)
        if steps == 0:
            raise DataError(f"batch size {batch_size}: more rows than the {self.rows} of this split\n  Set it to at most {self.rows}.")
        return self._generate(batch_size, rank, world_size, order, range(start, steps))

    def _generate(self, batch_size: int, rank: int, world_size: int, order: tuple[int, int] | None, steps: range) -> Iterator[Batch]:
        shuffled = None if order is None else torch.from_numpy(_permutation(self.rows, *order))
        for step in steps:
            first = step * batch_size
            size = min(batch_size, self.rows - first)
            low, high = (first + row for row in rows_of_rank(size, rank, world_size))
            yield self._batch(torch.arange(low, high) if shuffled is None else shuffled[low:high], size)

    def take(self, rows: int) -> Batch:
        """The first `rows` samples in file order (all, where there are fewer) as one batch of a single rank."""
        size = min(rows, self.rows)
        return self._batch(torch.arange(size), size)

    def _batch(self, rows: torch.Tensor, global_rows: int) -> Batch:
        values, lengths = zip(*(block.gather(rows) for block in self._blocks), strict=True)
        features = KeyedJaggedTensor(keys=self._names, values=torch.cat(values), lengths=torch.cat(lengths), stride=len(rows))
        return Batch(features, self._labels[rows], global_rows)


def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """An order of `rows` rows that (seed, epoch) determine, the same on every rank and every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch]))).permutation(rows)


def open_split(folder: str | Path, manifest: Manifest, split: str) -> Split:
    """Read `split` of the prepared data in `folder` into memory and check it.

    raises: DataError for a shard that is missing, damaged or has other columns than the manifest says; for an id outside [0, C_j); for a label that
            is neither 0 nor 1.
    """
    if split not in manifest.splits:
        raise DataError(f"{folder}: has no split {split!r}; its splits are {', '.join(manifest.splits)}")
    shards = manifest.splits[split].shards
    tables = [_read_shard(f"{folder}/{shard.file}", manifest, shard.rows) for shard in shards]
    where = f"{folder}/{split}"
    table = pa.concat_tables(tables)
    labels = table[LABEL].to_numpy()
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise DataError(f"{where}: label {wrong[0]} in {len(wrong):,} rows; a label is 0 or 1\n  {REDO}")
    blocks: list[_SingleValued | _MultiValued] = []
    for multi_valued, group in groupby(manifest.fields, key=lambda field: field.multi_valued):
        if multi_valued:
            blocks += [_multi_valued(where, field, table[field.name]) for field in group]
        else:
            blocks.append(_single_valued(where, list(group), table))
    return Split(list(manifest.fields), blocks, torch.from_numpy(labels.astype(np.float32)))


def _read_shard(path: str, manifest: Manifest, rows: int) -> pa.Table:
    wanted = split_schema({field.name: field.multi_valued for field in manifest.fields})
    try:
        with open_file(path, "rb") as file:
            table = pq.read_table(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})\n  {REDO}") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]})\n  {REDO}") from None
    for column in wanted:
        if column.name not in table.column_names:
            raise DataError(f"{path}: has no column {column.name}; it has {', '.join(table.column_names)}")
        found = table.schema.field(column.name).type
        if found != column.type:
            raise DataError(f"{path}: column {column.name} is {found}; the manifest says {column.type}")
        if table[column.name].null_count:
            raise DataError(f"{path}: column {column.name} lacks {table[column.name].null_count:,} values")
    if table.num_rows != rows:
        raise DataError(f"{path}: has {table.num_rows:,} rows; the manifest says {rows:,}")
    return table.select(wanted.names)


def _single_valued(where: str, fields: list[FieldEntry], table: pa.Table) -> _SingleValued:
    ids = np.empty((len(fields), table.num_rows), dtype=np.int32)
    for number, field in enumerate(fields):
        ids[number] = table[field.name].to_numpy()
        _check_ids(where, field, ids[number])
    return _SingleValued(torch.from_numpy(ids))


def _multi_valued(where: str, field: FieldEntry, column: pa.ChunkedArray) -> _MultiValued:
    lists = column.combine_chunks()
    # flatten() and the lengths, not .values and .offsets: those show the whole buffer of a sliced array.
    ids = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    _check_ids(where, field, ids)
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False), out=offsets[1:])
    return _MultiValued(torch.from_numpy(ids), torch.from_numpy(offsets))


def _check_ids(where: str, field: FieldEntry, ids: np.ndarray[Any, Any]) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= field.rows):
        wrong = ids[(ids < 0) | (ids >= field.rows)]
        raise DataError(f"{where}: field {field.name} has id {wrong[0]}; its ids go from 0 to {field.rows - 1}\n  {REDO}")
