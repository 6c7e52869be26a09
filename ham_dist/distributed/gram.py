"""Gram matrices of tables that lie on the ranks, and multiplying tables by a small matrix in place.

    V (C, d) a table, G = V'V (d, d)

Callers ask by table and need not know how it is sharded: where the rows of a table are spread over ranks, the sum over ranks belongs here.
"""

from collections.abc import Callable

import torch

from ham_dist.distributed import process_group
from ham_dist.distributed.sharding import LocalTable, ShardedModel

MatrixOf = Callable[[torch.Tensor], torch.Tensor]
"""A (d, d) matrix made from a Gram matrix."""


def gram(local: LocalTable) -> torch.Tensor:
    """G of one table, (d, d), on the ranks that hold it. A table lies whole on one rank, so that its own rows are all rows."""
    columns = local.columns.detach()
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
        gradient.addmm_(local.columns, matrix_of(gram(local)), alpha=scale)


@torch.no_grad()
def multiply(model: ShardedModel, matrix_of: MatrixOf, step: float) -> None:
    """V <- V - step * V matrix_of(G), in place, for each table."""
    for local in model.local.values():
        local.columns.sub_(local.columns @ matrix_of(gram(local)), alpha=step)


def sum_over_tables(model: ShardedModel, number_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The sum of number_of(G) over all tables of all ranks; the same on every rank."""
    total = torch.zeros((), dtype=torch.float64)
    for local in model.local.values():
        total += number_of(gram(local)).double().cpu()
    return float(process_group.sum_over_ranks(total.to(model.device)))


def column_norms(model: ShardedModel) -> torch.Tensor:
    """Euclidean length of every column, (S,) float32 on CPU in the layout's order; the same on every rank."""
    layout = model.mask.layout
    norms = torch.zeros(layout.size)
    for field, local in model.local.items():
        norms[layout.slices[field]] = gram(local).diagonal().sqrt().cpu()
    return process_group.sum_over_ranks(norms.to(model.device)).cpu()
