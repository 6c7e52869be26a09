"""Gram matrices of tables that lie on the ranks, and the products of tables with a small matrix.

    V (C, d) a table, or every k-th row of one; G = V'V (d, d)

Callers ask by table and need not know how it is sharded. What it takes:
    a whole table on a rank (or a copy on each)   nothing: G is that rank's own
    rows on several ranks                         G is the sum of the ranks' own: one all-reduce of d x d numbers, of all such tables together
    columns on several ranks                      rows are brought together some at a time and shared out evenly, then as above; and V M takes the
                                                  same way there and back. So it costs an all-to-all of the whole table, with bounded memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ham_dist.distributed import process_group
from ham_dist.distributed.exchange import even_blocks, move, windows
from ham_dist.distributed.placement import Placement
from ham_dist.distributed.rounding import FLOAT32_BITS, rounded
from ham_dist.distributed.sharding import TABLES, LocalTable, ShardedModel, joined_rows

MatrixOf = Callable[[torch.Tensor, int], torch.Tensor]
"""A (d, d) matrix, or a number, made from the Gram matrix and the base width of a table."""


@dataclass(frozen=True)
class Turn:
    """Which rows of each table have their turn: every k-th one, k such that these are about `rows`; the next turn has those after them.

    Ids go by frequency, so that evenly spread rows stand for the table, where neighbours would not.

    number: how many turns came before.
    """

    number: int
    rows: int

    def of(self, table_rows: int) -> tuple[int, int]:
        """The first row of a table that has its turn, and how many rows on the next one lies."""
        stride = -(-table_rows // self.rows)
        return self.number % stride, stride


@dataclass(frozen=True)
class Product:
    """Some rows of this rank's part of a table, and their product with a matrix.

    key:     the table's, as in `ShardedModel.placements`.
    rows:    which rows of the part.
    columns: which of the table's columns in use lie here.
    stride:  of the turn.
    values:  (rows, columns) of the table, float32: a copy, since every k-th row of a large table lies on a page of its own.
    product: (rows, columns) of V M.
    matrix:  M (d, d).
    """

    key: str
    rows: slice
    columns: slice
    stride: int
    values: torch.Tensor
    product: torch.Tensor
    matrix: torch.Tensor


BLOCK_NUMBERS = 1 << 22
"""Numbers of a table that are multiplied at a time, so that no second copy of it comes up."""


def grams(model: ShardedModel, turn: Turn | None = None) -> dict[str, torch.Tensor]:
    """G of each table under search that this rank has something of, (d, d) float32; the same on every rank that has it. A collective.

    Where G is a sum over ranks it is summed in float64 and rounded to float32, so that it does not depend on how many they are.

    turn: of these rows alone, scaled up to the table: over all turns, the mean is G of the whole table (but for a last row more or less).
    """
    return _grams(model, _held(model, turn), turn)


@torch.no_grad()
def add_to_gradients(model: ShardedModel, matrix_of: MatrixOf, scale: float) -> None:
    """Add scale * V matrix_of(G) to the gradient of each table: what autograd would add for a penalty with that gradient.

    Needs the dense kernel, whose tables have a gradient of their own.
    """
    matrices = _matrices(model, matrix_of, grams(model))
    for field, placement in model.plan.groups[TABLES].items():
        local = model.part(f"{TABLES}/{field}")
        if placement.splits_columns:
            for rows, product in _products(model, placement, local, matrices[field]):
                _gradient(local)[rows].add_(product, alpha=scale)
        elif local is not None:
            _gradient(local).addmm_(local.columns, matrices[field], alpha=scale)


@torch.no_grad()
def products(model: ShardedModel, matrix_of: MatrixOf, turn: Turn) -> Iterator[Product]:
    """V matrix_of(G) of the rows of each table that have their turn, with G as they tell it. A collective: go through to the end."""
    held = _held(model, turn)
    matrices = _matrices(model, matrix_of, _grams(model, held, turn))
    for field, placement, local in held:
        key, (_, stride) = f"{TABLES}/{field}", turn.of(placement.table.rows)
        pieces = (
            _products(model, placement, local, matrices[field])
            if placement.splits_columns
            else []
            if local is None
            else [(slice(0, local.part.rows), local.columns @ matrices[field])]
        )
        for rows, product in pieces:
            whole = model.part(key)
            assert local is not None
            assert whole is not None
            first = _first_row(whole, turn)
            there = slice(first + rows.start * stride, first + rows.stop * stride, stride)
            yield Product(key, there, local.in_use, stride, local.columns[rows], product, matrices[field])


def sum_over_tables(model: ShardedModel, number_of: MatrixOf) -> float:
    """The sum of number_of(G, base width) over all tables of all ranks; the same on every rank."""
    total = torch.zeros((), dtype=torch.float64)
    for field, matrix in _counted_once(model):
        total += number_of(matrix, model.plan.groups[TABLES][field].table.base_width).double().cpu()
    return float(process_group.sum_over_ranks(total.to(model.device)))


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
        if model.plan.groups[TABLES][field].parts[0].rank == process_group.rank():
            yield field, matrix


Held = tuple[str, Placement, LocalTable | None]
"""Name of a table, where it lies, and this rank's part of it."""


def _held(model: ShardedModel, turn: Turn | None = None) -> list[Held]:
    """Every table under search, whole or as a table of just the rows that have their turn (a copy of them)."""
    held: list[Held] = []
    for field, placement in model.plan.groups[TABLES].items():
        local = model.part(f"{TABLES}/{field}")
        if turn is not None:
            first, stride = turn.of(placement.table.rows)
            placement = replace(placement, parts=tuple(part.of_turn(first, stride) for part in placement.parts))
            if local is not None:
                values = local.values[_first_row(local, turn) :: stride].float().contiguous()
                local = replace(local, part=local.part.of_turn(first, stride), values=values)
        held.append((field, placement, local))
    return held


def _grams(model: ShardedModel, held: Sequence[Held], turn: Turn | None) -> dict[str, torch.Tensor]:
    found, sums, scale = {}, {}, {}
    for field, placement, local in held:
        first, stride = (0, 1) if turn is None else turn.of(placement.table.rows)
        scale[field] = placement.table.rows / len(range(first, placement.table.rows, stride))
        if placement.splits_columns or placement.shares_rows:
            sums[field] = torch.zeros(placement.table.width, placement.table.width, dtype=torch.float64, device=model.device)
            for rows in _whole_rows(model, placement, local):
                block = rows.double()
                sums[field] += block.T @ block
        elif local is not None:
            found[field] = _own_gram(local.columns.detach()) * scale[field]
    if sums:
        flat = process_group.sum_over_ranks(torch.cat([matrix.flatten() * scale[field] for field, matrix in sums.items()]))
        parts = flat.split([matrix.numel() for matrix in sums.values()])
        found |= {field: rounded(part, FLOAT32_BITS).float().view_as(sums[field]) for field, part in zip(sums, parts, strict=True)}
    return found


def _own_gram(columns: torch.Tensor) -> torch.Tensor:
    """G of rows that lie here, in float32: those of half the bytes are widened some at a time."""
    if columns.dtype == torch.float32:
        return columns.T @ columns
    matrix = torch.zeros(columns.shape[1], columns.shape[1], device=columns.device)
    for block in columns.split(max(1, BLOCK_NUMBERS // columns.shape[1])):
        rows = block.float()
        matrix.addmm_(rows.T, rows)
    return matrix


def _matrices(model: ShardedModel, matrix_of: MatrixOf, grams_of: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {field: matrix_of(matrix, model.plan.groups[TABLES][field].table.base_width) for field, matrix in grams_of.items()}


def _first_row(local: LocalTable, turn: Turn) -> int:
    """The first row of this rank's part that has its turn."""
    first, stride = turn.of(local.table.rows)
    return (first - local.part.first_row) % stride


def _whole_rows(model: ShardedModel, placement: Placement, local: LocalTable | None) -> Iterator[torch.Tensor]:
    """Rows with all their columns in use, some at a time, which together with the other ranks' are the table."""
    if placement.splits_columns:
        yield from (rows for _, rows in joined_rows(placement, local, model.device))
    elif local is not None:
        yield from local.columns.detach().split(max(1, BLOCK_NUMBERS // local.table.stored_width))


def _products(model: ShardedModel, placement: Placement, local: LocalTable | None, matrix: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """V M of a table whose columns are apart, some rows at a time: which rows of this rank's part, and (rows, columns in use there) of the product.

    Nothing for a rank without a part, which takes its share of the work all the same. A collective: go through to the end.
    """
    kept = torch.arange(placement.table.width)
    for (start, stop), (_, rows) in zip(windows(placement.parts), joined_rows(placement, local, model.device), strict=True):
        takers = [part.within(start, stop) for part in placement.parts]
        blocks = even_blocks(start, stop, placement.table.width, process_group.world_size())
        back = None if local is None else rows.new_empty(local.part.within(start, stop).rows, local.part.columns)
        move(blocks, rows @ matrix, takers, back, kept, replicated=False, device=model.device)
        if local is not None:
            assert back is not None
            mine = local.part.within(start, stop)
            first = mine.first_row - local.part.first_row
            yield slice(first, first + mine.rows), back[:, : local.columns.shape[1]]


def _gradient(local: LocalTable | None) -> torch.Tensor:
    """(rows here, columns in use here) of the gradient."""
    assert local is not None
    assert local.parameter is not None
    assert local.parameter.grad is not None
    return local.parameter.grad[:, : local.columns.shape[1]]
