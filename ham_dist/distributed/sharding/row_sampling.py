"""Row sampling: every k-th row of each table in rotation, their Gram matrices, and products with a matrix.

Shape letters: R sampled rows, V (R, d) the rows, G = V'V (d, d) scaled up to the whole table. Tables of the
same dim are processed together, up to BLOCK_NUMBERS numbers: one product for all of them, where each table
alone would launch about thirty small operations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.sharding.gram import (
    BLOCK_NUMBERS,
    MatrixOf,
    gram,
    partial_gram,
    products_across_columns,
    summed_over_ranks,
    zero_sums,
)
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel

TableOnRanks = tuple[str, Placement, LocalTable | None]
"""Name of a table, its placement, and this rank's shard of it (None if it has none)."""


@dataclass(frozen=True)
class RowSample:
    """Samples every k-th row of each table, with k such that there are about `rows` of them.

    The next sample has the rows after these, so that all rows are sampled in rotation. Ids are sorted by
    frequency, so evenly spaced rows represent the table, and consecutive rows would not.

    Attributes:
        number: Number of samples before this one.
        rows: Sampled rows per table, about.
    """

    number: int
    rows: int

    def first_and_stride(self, table_rows: int) -> tuple[int, int]:
        """Returns the first sampled row of a table, and the distance from one sampled row to the next."""
        stride = -(-table_rows // self.rows)
        return self.number % stride, stride


@dataclass(frozen=True)
class SampledRows:
    """The sampled rows of this rank's shards of T tables of one dim; R is the number of rows of the largest.

    Attributes:
        keys: Names of the tables, as in `ShardedModel.placements`.
        rows: Sampled rows of each shard; the step of the range is the sample's stride.
        columns: The tables' columns in use on this rank.
    """

    keys: tuple[str, ...]
    rows: tuple[range, ...]
    columns: slice

    def stacked(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Copies these rows from one tensor per table into one: (T, R, columns) float32, or (T, R, 1).

        The copy gathers the rows: every k-th row of a large table is on a memory page of its own. Tables with
        fewer than R rows are padded with zeros.

        Args:
            parts: (rows of the shard, columns) or (rows of the shard,), one for each table.
        """
        columns = 1 if parts[0].dim() == 1 else self.columns.stop - self.columns.start
        counts = [len(rows) for rows in self.rows]
        stack = torch.zeros(len(parts), max(counts), columns, device=parts[0].device)
        for place, part, rows in zip(stack, parts, self.rows, strict=True):
            place[: len(rows)] = part.view(len(part), -1)[_slice(rows), :columns]
        return stack

    def put_back(self, parts: Sequence[torch.Tensor], stack: torch.Tensor) -> None:
        """Writes a stack back to these rows.

        Args:
            parts: (rows of the shard, columns), one for each table.
            stack: (T, R, columns).
        """
        for place, part, rows in zip(stack, parts, self.rows, strict=True):
            part[_slice(rows), : place.shape[1]] = place[: len(rows)]


@dataclass(frozen=True)
class Product:
    """Sampled rows of T tables of one dim, and their products with one matrix each.

    Attributes:
        at: The sampled rows.
        values: Rows of the tables, (T, R, columns) float32.
        product: V M, (T, R, columns).
        matrix: M, (T, d, d).
    """

    at: SampledRows
    values: torch.Tensor
    product: torch.Tensor
    matrix: torch.Tensor


@torch.no_grad()
def products(model: ShardedModel, matrix_of: MatrixOf, sample: RowSample) -> Iterator[Product]:
    """Yields V matrix_of(G) for the sampled rows of each table, with G estimated from them.

    A collective: iterate to the end. The estimate of G is unbiased: its mean over a rotation is the G of the
    whole table (exact if the stride divides the number of rows).
    """
    stacks, split_tables = _stacks(model, sample), _split_by_columns(model, sample)
    found = _grams(model, stacks, split_tables, sample)
    for stack in stacks:
        dims = [model.plan.groups[TABLES][field].table.base_dim for field in stack.fields]
        base_dims = torch.tensor(dims, dtype=torch.float32, device=model.device).view(-1, 1, 1)
        matrix = matrix_of(torch.stack([found[field] for field in stack.fields]), base_dims)
        yield Product(stack.at, stack.values, stack.values @ matrix, matrix)
    for field, placement, local in split_tables:
        key = f"{TABLES}/{field}"
        whole = model.local_table(key)
        matrix = matrix_of(found[field], placement.table.base_dim)
        for rows, product in products_across_columns(model, placement, local, matrix):
            assert whole is not None
            assert local is not None
            _, stride = sample.first_and_stride(placement.table.num_embeddings)
            first = _first_row(whole, sample)
            at = SampledRows(
                (key,),
                (range(first + rows.start * stride, first + rows.stop * stride, stride),),
                local.in_use,
            )
            yield Product(at, local.columns[rows].unsqueeze(0), product.unsqueeze(0), matrix.unsqueeze(0))


@dataclass(frozen=True)
class _Stack:
    """Sampled rows of tables whose rows are whole on this rank.

    Attributes:
        fields: The T tables.
        shared: True if other ranks have other rows of them.
        at: The sampled rows.
        values: (T, R, d).
    """

    fields: tuple[str, ...]
    shared: bool
    at: SampledRows
    values: torch.Tensor


def _stacks(model: ShardedModel, sample: RowSample) -> list[_Stack]:
    """Returns the tables with whole rows on this rank, stacked by equal dim and similar number of rows."""
    groups: dict[tuple[int, bool, bool, int], list[tuple[str, LocalTable, range]]] = {}
    for field, placement in model.plan.groups[TABLES].items():
        local = model.local_table(f"{TABLES}/{field}")
        if local is not None and not placement.splits_columns:
            rows = range(
                _first_row(local, sample),
                local.shard.rows,
                sample.first_and_stride(local.table.num_embeddings)[1],
            )
            # Row counts are grouped by powers of two, so that at most half of a stack is padding. Replicated
            # tables are stacked only with each other: every rank then has the same stacks and the same sums.
            # Stacked with other tables, which differ by rank, products would be rounded differently, and the
            # copies would diverge.
            group = (
                placement.table.embedding_dim,
                placement.shares_rows,
                placement.replicated,
                len(rows).bit_length(),
            )
            groups.setdefault(group, []).append((field, local, rows))
    stacks = []
    for (dim, shared, *_), members in groups.items():
        at_once = max(1, BLOCK_NUMBERS // (sample.rows * dim))
        for first in range(0, len(members), at_once):
            fields, parts, of_parts = zip(*members[first : first + at_once], strict=True)
            at = SampledRows(tuple(f"{TABLES}/{field}" for field in fields), of_parts, slice(0, dim))
            stacks.append(_Stack(fields, shared, at, at.stacked([local.values for local in parts])))
    return stacks


def _split_by_columns(model: ShardedModel, sample: RowSample) -> list[TableOnRanks]:
    """Returns the tables whose columns are on several ranks, each reduced to a copy of its sampled rows."""
    held: list[TableOnRanks] = []
    for field, placement in model.plan.groups[TABLES].items():
        if placement.splits_columns:
            first, stride = sample.first_and_stride(placement.table.num_embeddings)
            placement = replace(
                placement, shards=tuple(shard.strided(first, stride) for shard in placement.shards)
            )
            local = model.local_table(f"{TABLES}/{field}")
            if local is not None:
                values = local.values[_first_row(local, sample) :: stride].float().contiguous()
                local = replace(local, shard=local.shard.strided(first, stride), values=values)
            held.append((field, placement, local))
    return held


def _grams(
    model: ShardedModel, stacks: Sequence[_Stack], split_tables: Sequence[TableOnRanks], sample: RowSample
) -> dict[str, torch.Tensor]:
    """Returns G of each table, scaled up from the sampled rows to the whole table."""
    found: dict[str, torch.Tensor] = {}
    sums = zero_sums(model)
    for stack in stacks:
        for field, matrix in zip(
            stack.fields, gram(stack.values, torch.float64 if stack.shared else torch.float32), strict=True
        ):
            (sums if stack.shared else found)[field] = matrix * _rows_per_sampled_row(model, field, sample)
    for field, placement, local in split_tables:
        sums[field] = partial_gram(model, placement, local) * _rows_per_sampled_row(model, field, sample)
    return found | summed_over_ranks(sums)


def _rows_per_sampled_row(model: ShardedModel, field: str, sample: RowSample) -> float:
    """Returns the number of rows of a table per sampled row."""
    rows = model.plan.groups[TABLES][field].table.num_embeddings
    first, stride = sample.first_and_stride(rows)
    return rows / len(range(first, rows, stride))


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)


def _first_row(local: LocalTable, sample: RowSample) -> int:
    """Returns the first sampled row of this rank's shard, counted from the shard's first row."""
    first, stride = sample.first_and_stride(local.table.num_embeddings)
    return (first - local.shard.first_row) % stride
