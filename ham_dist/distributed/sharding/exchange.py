"""Moving numbers of a table from the ranks that hold them under one plan to those that hold them under another, some rows at a time.

    C rows, d columns of one table

Both sides are known to every rank, so what is sent where needs no word between them.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from ham_dist.distributed.planning.placement import TableShard
from ham_dist.distributed.ranks import process_group

CHUNK_NUMBERS = 1 << 22
"""Numbers of a table that are under way at a time (16 MiB of float32 in each direction)."""


def move(
    source: Sequence[TableShard],
    values: torch.Tensor | None,
    target: Sequence[TableShard],
    into: torch.Tensor | None,
    kept: torch.Tensor,
    *,
    replicated: bool,
    device: torch.device,
) -> None:
    """Fill the parts in `target` from those in `source`: column k of the target is column kept[k] of the source. A collective.

    The source covers a table; the target covers it or some of its rows.

    values:     this rank's part of the source, (rows, columns); None where it has none.
    into:       this rank's part of the target, likewise; columns past len(kept), which are padding, stay as they are. Numbers go as float32, in which
                those of half the bytes have their place, so that they arrive as they were.
    kept:       (d,) int64, on CPU.
    replicated: whether every part of the source is the whole table: each rank then reads its own.
    device:     of this rank, which may hold neither.
    """
    pairs = _pairs(source, target, replicated)
    crosses = any(giver.rank != taker.rank for giver, taker in pairs)
    for start, stop in windows(target):
        clipped = [
            (giver, taker, giver.within(start, stop).within(taker.first_row, taker.first_row + taker.rows))
            for giver, taker in pairs
        ]
        _exchange(
            [(giver, taker, rows) for giver, taker, rows in clipped if rows.rows],
            values,
            into,
            kept,
            device,
            crosses=crosses,
        )


def windows(parts: Sequence[TableShard]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover `parts`, each of about CHUNK_NUMBERS numbers; the same on every rank."""
    first, last = min(part.first_row for part in parts), max(part.first_row + part.rows for part in parts)
    width = max(part.first_column + part.columns for part in parts)
    step = max(1, CHUNK_NUMBERS // max(1, width))
    for start in range(first, last, step):
        yield start, min(last, start + step)


def even_blocks(start: int, stop: int, columns: int, ranks: int) -> tuple[TableShard, ...]:
    """The rows [start, stop) with all their columns, shared out to all ranks."""
    edges = [start + (stop - start) * rank // ranks for rank in range(ranks + 1)]
    return tuple(
        TableShard(rank, edges[rank], edges[rank + 1] - edges[rank], 0, columns) for rank in range(ranks)
    )


def _pairs(
    source: Sequence[TableShard], target: Sequence[TableShard], replicated: bool
) -> list[tuple[TableShard, TableShard]]:
    return [
        (giver, taker) for giver in source for taker in target if not replicated or giver.rank == taker.rank
    ]


def _exchange(
    pairs: Sequence[tuple[TableShard, TableShard, TableShard]],
    values: torch.Tensor | None,
    into: torch.Tensor | None,
    kept: torch.Tensor,
    device: torch.device,
    *,
    crosses: bool,
) -> None:
    """Each pair is a giver, a taker, and a part with the rows that go from one to the other."""
    me, ranks = process_group.rank(), process_group.world_size()
    sent: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    received = [0] * ranks
    for giver, taker, rows in pairs:
        columns = _columns(giver, taker, kept)
        if giver.rank == me and len(columns):
            assert values is not None
            here = values[rows.first_row - giver.first_row :][: rows.rows]
            wanted = kept[columns].to(here.device) - giver.first_column
            sent[taker.rank].append(here.index_select(1, wanted).reshape(-1))
        if taker.rank == me:
            received[giver.rank] += rows.rows * len(columns)
    sizes = [sum(piece.numel() for piece in pieces) for pieces in sent]
    outgoing = torch.cat([torch.empty(0, device=device), *(piece for pieces in sent for piece in pieces)])
    if crosses:
        incoming = outgoing.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sizes)
    else:
        incoming = outgoing
    place = 0
    # As sent: by giver, and from one giver in the order of the pairs.
    for giver, taker, rows in sorted(
        (pair for pair in pairs if pair[1].rank == me), key=lambda pair: pair[0].rank
    ):
        columns = _columns(giver, taker, kept)
        if count := rows.rows * len(columns):
            assert into is not None
            piece = incoming[place : place + count].view(rows.rows, len(columns))
            into[rows.first_row - taker.first_row :][: rows.rows].index_copy_(
                1, (columns - taker.first_column).to(into.device), piece.to(into.dtype)
            )
            place += count


def _columns(giver: TableShard, taker: TableShard, kept: torch.Tensor) -> torch.Tensor:
    """Which columns of the target the giver has for the taker, numbered as in the target's whole table."""
    numbers = torch.arange(taker.first_column, min(taker.first_column + taker.columns, len(kept)))
    sources = kept[numbers]
    return numbers[(sources >= giver.first_column) & (sources < giver.first_column + giver.columns)]
