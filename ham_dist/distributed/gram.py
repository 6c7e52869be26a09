"""Gram matrices of tables that lie on the ranks, and multiplying tables by a small matrix in place.

    V (C, d) a table, G = V'V (d, d)

Callers ask by table and need not know how it is sharded.
"""

from collections.abc import Callable

import torch

from ham_dist.distributed import process_group
from ham_dist.distributed.sharding import LocalTable, ShardedModel
from ham_dist.errors import ShardingError

MatrixOf = Callable[[torch.Tensor, int], torch.Tensor]
"""A (d, d) matrix, or a number, made from the Gram matrix and the base width of a table."""

BLOCK_NUMBERS = 1 << 22
"""Numbers of a table that are multiplied at a time, so that no second copy of it comes up."""


def gram(local: LocalTable) -> torch.Tensor:
    """G of one table, (d, d), on the rank that holds it.

    raises: ShardingError if the rank holds a part of the rows only: the sum over ranks that this would take is not built.
    """
    columns = local.columns.detach()
    if columns.shape[0] != local.table.rows:
        raise ShardingError(f"table {local.table.field!r}: this rank holds {columns.shape[0]} of its {local.table.rows} rows. Shard it table-wise")
    return columns.T @ columns


@torch.no_grad()
def add_to_gradients(model: ShardedModel, matrix_of: MatrixOf, scale: float) -> None:
    """Add scale * V matrix_of(G) to the gradient of each table: what autograd would add for a penalty with that gradient.

    Needs the dense kernel, whose tables have a gradient of their own.
    """
    for local in model.local.values():
        assert local.parameter is not None
        assert local.parameter.grad is not None
        gradient = local.parameter.grad[:, : local.table.width]
        gradient.addmm_(local.columns, matrix_of(gram(local), local.table.base_width), alpha=scale)


@torch.no_grad()
def multiply(model: ShardedModel, matrix_of: MatrixOf, step: float) -> None:
    """V <- V - step * V matrix_of(G), in place, for each table."""
    for local in model.local.values():
        matrix = matrix_of(gram(local), local.table.base_width)
        for block in local.columns.split(max(1, BLOCK_NUMBERS // local.table.stored_width)):
            block.sub_(block @ matrix, alpha=step)


def sum_over_tables(model: ShardedModel, number_of: MatrixOf) -> float:
    """The sum of number_of(G, base width) over all tables of all ranks; the same on every rank."""
    total = torch.zeros((), dtype=torch.float64)
    for local in model.local.values():
        total += number_of(gram(local), local.table.base_width).double().cpu()
    return float(process_group.sum_over_ranks(total.to(model.device)))


def column_norms(model: ShardedModel) -> torch.Tensor:
    """Euclidean length of every column, (S,) float32 on CPU in the layout's order; the same on every rank."""
    layout = model.mask.layout
    norms = torch.zeros(layout.size)
    for field, local in model.local.items():
        norms[layout.slices[field]] = gram(local).diagonal().sqrt().cpu()
    return process_group.sum_over_ranks(norms.to(model.device)).cpu()
