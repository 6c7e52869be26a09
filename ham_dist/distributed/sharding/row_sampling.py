"""Rows that have their turn: every k-th of each table, their Gram matrices, and their products with a small matrix.

    V (R, d) the rows, G = V'V (d, d) scaled up to the whole table

Tables of one width go together, as far as BLOCK_NUMBERS goes: one product for all of them, where each alone would start some thirty small operations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ham_dist.distributed.planning.placement import Placement
from ham_dist.distributed.sharding.gram import (
    BLOCK_NUMBERS,
    MatrixOf,
    gram,
    no_sums,
    products_apart,
    share_of_gram,
    summed,
)
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel

Held = tuple[str, Placement, LocalTable | None]
"""Name of a table, where it lies, and this rank's part of it."""


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
class TurnRows:
    """The rows that have their turn, of this rank's parts of T tables of one width; R of the one that has most.

    keys:    the tables', as in `ShardedModel.placements`.
    rows:    which rows of each part; their step is the turn's.
    columns: which of the tables' columns in use lie here.
    """

    keys: tuple[str, ...]
    rows: tuple[range, ...]
    columns: slice

    def stacked(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """These rows of one tensor for each table, (rows of the part, columns) or (rows of the part,): (T, R, columns) float32, or (T, R, 1).

        A copy: every k-th row of a large table lies on a page of its own. Zeros stand below the rows of a table that has fewer.
        """
        columns = 1 if parts[0].dim() == 1 else self.columns.stop - self.columns.start
        counts = [len(rows) for rows in self.rows]
        stack = torch.zeros(len(parts), max(counts), columns, device=parts[0].device)
        for place, part, rows in zip(stack, parts, self.rows, strict=True):
            place[: len(rows)] = part.view(len(part), -1)[_slice(rows), :columns]
        return stack

    def put_back(self, parts: Sequence[torch.Tensor], stack: torch.Tensor) -> None:
        """Write (T, R, columns) over these rows of one (rows of the part, columns) for each table."""
        for place, part, rows in zip(stack, parts, self.rows, strict=True):
            part[_slice(rows), : place.shape[1]] = place[: len(rows)]


@dataclass(frozen=True)
class Product:
    """Some rows of T tables of one width, and their products with a matrix each.

    at:      which rows.
    values:  (T, R, columns) of the tables, float32.
    product: (T, R, columns) of V M.
    matrix:  M (T, d, d).
    """

    at: TurnRows
    values: torch.Tensor
    product: torch.Tensor
    matrix: torch.Tensor


@torch.no_grad()
def products(model: ShardedModel, matrix_of: MatrixOf, turn: Turn) -> Iterator[Product]:
    """V matrix_of(G) of the rows of each table that have their turn, with G as they tell it. A collective: go through to the end.

    That G is unbiased: over all turns, the mean is the whole table's (but for a last row more or less).
    """
    stacks, apart = _stacks(model, turn), _apart(model, turn)
    found = _grams(model, stacks, apart, turn)
    for stack in stacks:
        dims = [model.plan.groups[TABLES][field].table.base_dim for field in stack.fields]
        base_dims = torch.tensor(dims, dtype=torch.float32, device=model.device).view(-1, 1, 1)
        matrix = matrix_of(torch.stack([found[field] for field in stack.fields]), base_dims)
        yield Product(stack.at, stack.values, stack.values @ matrix, matrix)
    for field, placement, local in apart:
        key = f"{TABLES}/{field}"
        whole = model.part(key)
        matrix = matrix_of(found[field], placement.table.base_dim)
        for rows, product in products_apart(model, placement, local, matrix):
            assert whole is not None
            assert local is not None
            _, stride = turn.of(placement.table.num_embeddings)
            first = _first_row(whole, turn)
            at = TurnRows(
                (key,),
                (range(first + rows.start * stride, first + rows.stop * stride, stride),),
                local.in_use,
            )
            yield Product(at, local.columns[rows].unsqueeze(0), product.unsqueeze(0), matrix.unsqueeze(0))


@dataclass(frozen=True)
class _Stack:
    """Rows of tables whose rows are whole, in turn.

    fields: the tables, T.
    shared: whether other ranks have other rows of them.
    values: (T, R, d).
    """

    fields: tuple[str, ...]
    shared: bool
    at: TurnRows
    values: torch.Tensor


def _stacks(model: ShardedModel, turn: Turn) -> list[_Stack]:
    """The tables whose rows are whole and of which this rank has some: those of one width and about as many rows together."""
    alike: dict[tuple[int, bool, bool, int], list[tuple[str, LocalTable, range]]] = {}
    for field, placement in model.plan.groups[TABLES].items():
        local = model.part(f"{TABLES}/{field}")
        if local is not None and not placement.splits_columns:
            rows = range(_first_row(local, turn), local.shard.rows, turn.of(local.table.num_embeddings)[1])
            # By powers of two, so that at most half of a stack is filling. Copies with copies alone: every rank then has the same stacks of them, and
            # sums them alike. Beside other tables, which differ by rank, a product is rounded otherwise, and copies would drift apart.
            kind = (
                placement.table.embedding_dim,
                placement.shares_rows,
                placement.replicated,
                len(rows).bit_length(),
            )
            alike.setdefault(kind, []).append((field, local, rows))
    stacks = []
    for (width, shared, *_), members in alike.items():
        at_once = max(1, BLOCK_NUMBERS // (turn.rows * width))
        for first in range(0, len(members), at_once):
            fields, parts, of_parts = zip(*members[first : first + at_once], strict=True)
            at = TurnRows(tuple(f"{TABLES}/{field}" for field in fields), of_parts, slice(0, width))
            stacks.append(_Stack(fields, shared, at, at.stacked([local.values for local in parts])))
    return stacks


def _apart(model: ShardedModel, turn: Turn) -> list[Held]:
    """The tables whose columns lie on several ranks, each as a table of just the rows that have their turn (a copy of them)."""
    held: list[Held] = []
    for field, placement in model.plan.groups[TABLES].items():
        if placement.splits_columns:
            first, stride = turn.of(placement.table.num_embeddings)
            placement = replace(
                placement, shards=tuple(shard.strided(first, stride) for shard in placement.shards)
            )
            local = model.part(f"{TABLES}/{field}")
            if local is not None:
                values = local.values[_first_row(local, turn) :: stride].float().contiguous()
                local = replace(local, shard=local.shard.strided(first, stride), values=values)
            held.append((field, placement, local))
    return held


def _grams(
    model: ShardedModel, stacks: Sequence[_Stack], apart: Sequence[Held], turn: Turn
) -> dict[str, torch.Tensor]:
    """Scaled up to the tables."""
    found: dict[str, torch.Tensor] = {}
    sums = no_sums(model)
    for stack in stacks:
        for field, matrix in zip(
            stack.fields, gram(stack.values, torch.float64 if stack.shared else torch.float32), strict=True
        ):
            (sums if stack.shared else found)[field] = matrix * _share(model, field, turn)
    for field, placement, local in apart:
        sums[field] = share_of_gram(model, placement, local) * _share(model, field, turn)
    return found | summed(sums)


def _share(model: ShardedModel, field: str, turn: Turn) -> float:
    """How many rows of a table stand behind each that has its turn."""
    rows = model.plan.groups[TABLES][field].table.num_embeddings
    first, stride = turn.of(rows)
    return rows / len(range(first, rows, stride))


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)


def _first_row(local: LocalTable, turn: Turn) -> int:
    """The first row of this rank's part that has its turn."""
    first, stride = turn.of(local.table.num_embeddings)
    return (first - local.shard.first_row) % stride
