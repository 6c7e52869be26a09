"""Gram matrices of sharded tables, and the products of tables with a small matrix.

V (C, d) is a table and G = V'V (d, d) its Gram matrix. Callers need not know how a table is sharded.
Communication, by where the table is:

- A whole table on one rank, or a copy on each: none.
- Rows on several ranks: G is the sum of the ranks' own Gram matrices, one sum over ranks of d x d numbers for
  all such tables together.
- Columns on several ranks: whole rows are joined a chunk at a time and split evenly over the ranks, then as
  above; V M takes the same way there and back. This is an all-to-all of the whole table, with bounded memory.
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
"""Computes a number from the Gram matrix and the base dim of a table."""
MatrixOf = Callable[[torch.Tensor, int | torch.Tensor], torch.Tensor]
"""Computes a (d, d) matrix from the Gram matrix and the base dim of a table; or (T, d, d) from T of each,
with the dims as (T, 1, 1)."""

BLOCK_NUMBERS = 1 << 22
"""Numbers of a table that are multiplied at a time, which avoids a second copy of the table."""


def grams(model: ShardedModel, *, exact: bool = False) -> dict[str, torch.Tensor]:
    """Returns G, (d, d) float32, of each table under search that has a shard on this rank. A collective.

    G is identical on all ranks that have it. A sum over ranks is in float64 and rounded to float32.

    Args:
        exact: Do the same where a rank has the whole table, so that G does not depend on the number of ranks.
    """
    found: dict[str, torch.Tensor] = {}
    sums = zero_sums(model)
    for field, placement in model.plan.groups[TABLES].items():
        local = model.local_table(f"{TABLES}/{field}")
        if field in sums:
            sums[field] += partial_gram(model, placement, local)
        elif local is not None:
            rows = local.columns.detach()
            found[field] = gram(rows, torch.float64).float() if exact else gram(rows, torch.float32)
    return found | summed_over_ranks(sums)


@torch.no_grad()
def add_to_gradients(model: ShardedModel, matrix_of: MatrixOf, scale: float, *, exact: bool = False) -> None:
    """Adds scale * V matrix_of(G) to the gradient of each table, as autograd would for such a penalty.

    Needs the dense kernel, whose tables have gradients. A collective.

    Args:
        model: The tables.
        matrix_of: Computes M from G.
        scale: Factor of the gradient.
        exact: Round sums in float64 to float32, so that they do not depend on the number of ranks. It is
            slower, and takes memory for products of the table a block at a time.
    """
    matrices = _matrices(model, matrix_of, grams(model, exact=exact))
    if exact:
        matrices = {field: matrix.double() for field, matrix in matrices.items()}
    for field, placement in model.plan.groups[TABLES].items():
        local = model.local_table(f"{TABLES}/{field}")
        if placement.splits_columns:
            for rows, product in products_across_columns(model, placement, local, matrices[field]):
                _gradient(local)[rows].add_(product, alpha=scale)
        elif local is not None and exact:
            size = max(1, BLOCK_NUMBERS // max(1, local.columns.shape[1]))
            for gradient, block in zip(_gradient(local).split(size), local.columns.split(size), strict=True):
                gradient.add_((block.double() @ matrices[field]).float(), alpha=scale)
        elif local is not None:
            _gradient(local).addmm_(local.columns, matrices[field], alpha=scale)


def sum_over_tables(model: ShardedModel, number_of: NumberOf) -> float:
    """Returns the sum of number_of(G, base dim) over all tables, identical on every rank. A collective."""
    numbers = [
        float(number_of(matrix, model.plan.groups[TABLES][field].table.base_dim))
        for field, matrix in _counted_once(model)
    ]
    return math.fsum(number for of_rank in process_group.gather_objects(numbers) for number in of_rank)


def column_norms(model: ShardedModel) -> torch.Tensor:
    """Returns the Euclidean norm of every column, (S,) float32 on CPU in the layout's order. A collective."""
    layout = model.mask.layout
    norms = torch.zeros(layout.size)
    for field, matrix in _counted_once(model):
        norms[layout.slices[field]] = matrix.diagonal().sqrt().cpu()
    return process_group.sum_over_ranks(norms.to(model.device)).cpu()


def _counted_once(model: ShardedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields G of each table on only one rank, the one with its first shard."""
    for field, matrix in grams(model).items():
        if model.plan.groups[TABLES][field].shards[0].rank == process_group.rank():
            yield field, matrix


def zero_sums(model: ShardedModel) -> dict[str, torch.Tensor]:
    """Returns float64 zeros (d, d) for each table whose G is a sum over ranks, even without a shard here."""
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


def summed_over_ranks(sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the sums over all ranks, float32, with one collective call."""
    if not sums:
        return {}
    flat = process_group.sum_over_ranks(torch.cat([matrix.flatten() for matrix in sums.values()]))
    parts = flat.split([matrix.numel() for matrix in sums.values()])
    return {
        field: rounded(part, FLOAT32_BITS).float().view_as(sums[field])
        for field, part in zip(sums, parts, strict=True)
    }


def partial_gram(model: ShardedModel, placement: Placement, local: LocalTable | None) -> torch.Tensor:
    """Returns this rank's part of the sum G, (d, d) float64, for a table that is spread over ranks."""
    matrix = torch.zeros(
        placement.table.embedding_dim, placement.table.embedding_dim, dtype=torch.float64, device=model.device
    )
    for rows in _whole_rows(model, placement, local):
        matrix += gram(rows, torch.float64)
    return matrix


def gram(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns V'V (..., d, d) of local rows (..., R, d), in `dtype`; rows are converted a block at a time."""
    if rows.dtype == dtype:
        return rows.mT @ rows
    *tables, count, dim = rows.shape
    matrix = torch.zeros(*tables, dim, dim, dtype=dtype, device=rows.device)
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
    """Yields rows with all columns in use, in chunks; over all ranks they make up the table."""
    if placement.splits_columns:
        yield from (rows for _, rows in joined_rows(placement, local, model.device))
    elif local is not None:
        yield local.columns.detach()


def products_across_columns(
    model: ShardedModel, placement: Placement, local: LocalTable | None, matrix: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields V M of a table whose columns are on several ranks, a chunk of rows at a time.

    A collective: iterate to the end.

    Yields:
        The rows of this rank's shard as a slice, and the product's (rows, columns in use on this rank).
        Nothing on a rank without a shard, which still takes part in the exchanges.
    """
    kept = torch.arange(placement.table.embedding_dim)
    for (start, stop), (_, rows) in zip(
        windows(placement.shards), joined_rows(placement, local, model.device), strict=True
    ):
        receivers = [part.within(start, stop) for part in placement.shards]
        blocks = even_blocks(start, stop, placement.table.embedding_dim, process_group.world_size())
        back = (
            None
            if local is None
            else rows.new_empty(local.shard.within(start, stop).rows, local.shard.columns)
        )
        product = (rows.to(matrix.dtype) @ matrix).to(rows.dtype)
        move(blocks, product, receivers, back, kept, replicated=False, device=model.device)
        if local is not None:
            assert back is not None
            mine = local.shard.within(start, stop)
            first = mine.first_row - local.shard.first_row
            yield slice(first, first + mine.rows), back[:, : local.columns.shape[1]]


@torch.no_grad()
def multiply_columns(
    model: ShardedModel, placement: Placement, local: LocalTable | None, matrix: torch.Tensor
) -> None:
    """Replaces a table, or a state of its optimizer, by its product with a matrix. A collective.

    Args:
        local: This rank's shard; None if it has none.
        matrix: (d, d) float64. Products are rounded to float32, so they do not depend on the sharding.
    """
    if placement.splits_columns:
        for rows, product in products_across_columns(model, placement, local, matrix):
            _columns(local)[rows] = product
    elif local is not None:
        for block in local.columns.split(max(1, BLOCK_NUMBERS // max(1, local.columns.shape[1]))):
            block.copy_((block.double() @ matrix).float())


def _columns(local: LocalTable | None) -> torch.Tensor:
    assert local is not None
    return local.columns


def _gradient(local: LocalTable | None) -> torch.Tensor:
    """Returns the gradient of this rank's shard, (rows, columns in use)."""
    assert local is not None
    assert local.parameter is not None
    assert local.parameter.grad is not None
    return local.parameter.grad[:, : local.columns.shape[1]]
