"""Gram matrices of tables that lie on the ranks, and the products of tables with a small matrix.

    V (C, d) a table, G = V'V (d, d)

Callers ask by table and need not know how it is sharded. What it takes:
    a whole table on a rank (or a copy on each)   nothing: G is that rank's own
    rows on several ranks                         G is the sum of the ranks' own: one sum over ranks of d x d numbers, of all such tables together
    columns on several ranks                      rows are brought together some at a time and shared out evenly, then as above; and V M takes the
                                                  same way there and back. So it costs an all-to-all of the whole table, with bounded memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded
from ham_dist.distributed.sharding.exchange import even_blocks, move, windows
from ham_dist.distributed.sharding.local_table import LocalTable, joined_rows
from ham_dist.distributed.sharding.model import TABLES, ShardedModel

NumberOf = Callable[[torch.Tensor, int], torch.Tensor]
"""A number made from the Gram matrix and the base width of a table."""
MatrixOf = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]
"""A (d, d) matrix made from the Gram matrix and the base width of a table; or (T, d, d) from T of each, the dims as (T, 1, 1)."""

BLOCK_NUMBERS = 1 << 22
"""Numbers of a table that are multiplied at a time, so that no second copy of it comes up."""


def grams(model: ShardedModel) -> dict[str, torch.Tensor]:
    """G of each table under search that this rank has something of, (d, d) float32; the same on every rank that has it. A collective.

    Where G is a sum over ranks it is summed in float64 and rounded to float32, so that it does not depend on how many they are.
    """
    found: dict[str, torch.Tensor] = {}
    sums = no_sums(model)
    for field, placement in model.plan.groups[TABLES].items():
        local = model.part(f"{TABLES}/{field}")
        if field in sums:
            sums[field] += share_of_gram(model, placement, local)
        elif local is not None:
            found[field] = gram(local.columns.detach(), torch.float32)
    return found | summed(sums)


@torch.no_grad()
def add_to_gradients(model: ShardedModel, matrix_of: MatrixOf, scale: float) -> None:
    """Add scale * V matrix_of(G) to the gradient of each table: what autograd would add for a penalty with that gradient.

    Needs the dense kernel, whose tables have a gradient of their own.
    """
    matrices = _matrices(model, matrix_of, grams(model))
    for field, placement in model.plan.groups[TABLES].items():
        local = model.part(f"{TABLES}/{field}")
        if placement.splits_columns:
            for rows, product in products_apart(model, placement, local, matrices[field]):
                _gradient(local)[rows].add_(product, alpha=scale)
        elif local is not None:
            _gradient(local).addmm_(local.columns, matrices[field], alpha=scale)


def sum_over_tables(model: ShardedModel, number_of: NumberOf) -> float:
    """The sum of number_of(G, base width) over all tables of all ranks; the same on every rank, wherever the tables lie. A collective."""
    numbers = [
        float(number_of(matrix, model.plan.groups[TABLES][field].table.base_dim))
        for field, matrix in _counted_once(model)
    ]
    return math.fsum(number for of_rank in process_group.gather_objects(numbers) for number in of_rank)


def column_norms(model: ShardedModel) -> torch.Tensor:
    """Euclidean length of every column, (S,) float32 on CPU in the layout's order; the same on every rank."""
    layout = model.mask.layout
    norms = torch.zeros(layout.size)
    for field, matrix in _counted_once(model):
        norms[layout.slices[field]] = matrix.diagonal().sqrt().cpu()
    return process_group.sum_over_ranks(norms.to(model.device)).cpu()


def _counted_once(model: ShardedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """G of each table on one rank only: the one with its first part."""
    for field, matrix in grams(model).items():
        if model.plan.groups[TABLES][field].shards[0].rank == process_group.rank():
            yield field, matrix


def no_sums(model: ShardedModel) -> dict[str, torch.Tensor]:
    """A float64 zero matrix for each table whose G is a sum over ranks, also for one that this rank has nothing of."""
    return {
        field: torch.zeros(
            placement.table.embedding_dim,
            placement.table.embedding_dim,
            dtype=torch.float64,
            device=model.device,
        )
        for field, placement in model.plan.groups[TABLES].items()
        if placement.splits_columns or placement.shares_rows
    }


def summed(sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Over all ranks, in one exchange; float32."""
    if not sums:
        return {}
    flat = process_group.sum_over_ranks(torch.cat([matrix.flatten() for matrix in sums.values()]))
    parts = flat.split([matrix.numel() for matrix in sums.values()])
    return {
        field: rounded(part, FLOAT32_BITS).float().view_as(sums[field])
        for field, part in zip(sums, parts, strict=True)
    }


def share_of_gram(model: ShardedModel, placement: Placement, local: LocalTable | None) -> torch.Tensor:
    """This rank's share of G of a table that several ranks have, float64."""
    matrix = torch.zeros(
        placement.table.embedding_dim, placement.table.embedding_dim, dtype=torch.float64, device=model.device
    )
    for rows in _whole_rows(model, placement, local):
        matrix += gram(rows, torch.float64)
    return matrix


def gram(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """V'V (..., d, d) of rows (..., R, d) that lie here, in `dtype`: where that is another than theirs, some rows are turned into it at a time."""
    if rows.dtype == dtype:
        return rows.mT @ rows
    *tables, count, width = rows.shape
    matrix = torch.zeros(*tables, width, width, dtype=dtype, device=rows.device)
    for block in rows.split(max(1, BLOCK_NUMBERS * count // max(1, rows.numel())), dim=-2):
        block = block.to(dtype)
        matrix += block.mT @ block
    return matrix


def _matrices(
    model: ShardedModel, matrix_of: MatrixOf, grams_of: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {
        field: matrix_of(matrix, model.plan.groups[TABLES][field].table.base_dim)
        for field, matrix in grams_of.items()
    }


def _whole_rows(
    model: ShardedModel, placement: Placement, local: LocalTable | None
) -> Iterator[torch.Tensor]:
    """Rows with all their columns in use, which together with the other ranks' are the table; some at a time where they come from other ranks."""
    if placement.splits_columns:
        yield from (rows for _, rows in joined_rows(placement, local, model.device))
    elif local is not None:
        yield local.columns.detach()


def products_apart(
    model: ShardedModel, placement: Placement, local: LocalTable | None, matrix: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """V M of a table whose columns are apart, some rows at a time: which rows of this rank's part, and (rows, columns in use there) of the product.

    Nothing for a rank without a part, which takes its share of the work all the same. A collective: go through to the end.
    """
    kept = torch.arange(placement.table.embedding_dim)
    for (start, stop), (_, rows) in zip(
        windows(placement.shards), joined_rows(placement, local, model.device), strict=True
    ):
        takers = [part.within(start, stop) for part in placement.shards]
        blocks = even_blocks(start, stop, placement.table.embedding_dim, process_group.world_size())
        back = (
            None
            if local is None
            else rows.new_empty(local.shard.within(start, stop).rows, local.shard.columns)
        )
        move(blocks, rows @ matrix, takers, back, kept, replicated=False, device=model.device)
        if local is not None:
            assert back is not None
            mine = local.shard.within(start, stop)
            first = mine.first_row - local.shard.first_row
            yield slice(first, first + mine.rows), back[:, : local.columns.shape[1]]


def _gradient(local: LocalTable | None) -> torch.Tensor:
    """(rows here, columns in use here) of the gradient."""
    assert local is not None
    assert local.parameter is not None
    assert local.parameter.grad is not None
    return local.parameter.grad[:, : local.columns.shape[1]]
