"""Moves the rows of a table from its shards under one plan to its shards under another, in chunks of rows.

Shape letters: C rows, d columns of one table. Every rank knows both plans, so the ranks need no messages to
agree on what is sent where.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from ham_dist.distributed.planning.placement import TableShard
from ham_dist.distributed.ranks import process_group

CHUNK_NUMBERS = 1 << 22
"""Numbers of a table that are exchanged at a time (16 MiB of float32 in each direction)."""


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
    """Fills the target shards from the source shards: column k of the target is column kept[k] of the source.

    A collective. The source shards cover the table; the target shards cover it or some of its rows. Numbers
    are sent as float32, which holds half-precision numbers exactly.

    Args:
        source: Shards of the source on all ranks.
        values: This rank's source shard, (rows, columns); None if it has none.
        target: Shards of the target on all ranks.
        into: This rank's target shard, (rows, columns); None if it has none. Columns from len(kept) on are
            padding and are unchanged.
        kept: (d,) int64, on CPU.
        replicated: True if every source shard is the whole table; each rank then reads its own copy.
        device: Device of this rank, which may hold no shard at all.
    """
    pairs = _pairs(source, target, replicated)
    crosses = any(sender.rank != receiver.rank for sender, receiver in pairs)
    for start, stop in windows(target):
        clipped = [
            (
                sender,
                receiver,
                sender.within(start, stop).within(receiver.first_row, receiver.first_row + receiver.rows),
            )
            for sender, receiver in pairs
        ]
        _exchange(
            [(sender, receiver, rows) for sender, receiver, rows in clipped if rows.rows],
            values,
            into,
            kept,
            device,
            crosses=crosses,
        )


def windows(parts: Sequence[TableShard]) -> Iterator[tuple[int, int]]:
    """Yields ranges of rows that cover `parts`, about CHUNK_NUMBERS numbers each; the same on every rank."""
    first, last = min(part.first_row for part in parts), max(part.first_row + part.rows for part in parts)
    columns = max(part.first_column + part.columns for part in parts)
    step = max(1, CHUNK_NUMBERS // max(1, columns))
    for start in range(first, last, step):
        yield start, min(last, start + step)


def even_blocks(start: int, stop: int, columns: int, ranks: int) -> tuple[TableShard, ...]:
    """Returns the rows [start, stop), with all columns, split evenly over the ranks."""
    edges = [start + (stop - start) * rank // ranks for rank in range(ranks + 1)]
    return tuple(
        TableShard(rank, edges[rank], edges[rank + 1] - edges[rank], 0, columns) for rank in range(ranks)
    )


def _pairs(
    source: Sequence[TableShard], target: Sequence[TableShard], replicated: bool
) -> list[tuple[TableShard, TableShard]]:
    return [
        (sender, receiver)
        for sender in source
        for receiver in target
        if not replicated or sender.rank == receiver.rank
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
    """Exchanges the rows of all pairs: (sender's shard, receiver's shard, shard of the rows to send)."""
    me, ranks = process_group.rank(), process_group.world_size()
    sent: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    received = [0] * ranks
    for sender, receiver, rows in pairs:
        columns = _columns(sender, receiver, kept)
        if sender.rank == me and len(columns):
            assert values is not None
            here = values[rows.first_row - sender.first_row :][: rows.rows]
            wanted = kept[columns].to(here.device) - sender.first_column
            sent[receiver.rank].append(here.index_select(1, wanted).reshape(-1))
        if receiver.rank == me:
            received[sender.rank] += rows.rows * len(columns)
    sizes = [sum(piece.numel() for piece in pieces) for pieces in sent]
    outgoing = torch.cat([torch.empty(0, device=device), *(piece for pieces in sent for piece in pieces)])
    if crosses:
        incoming = outgoing.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sizes)
    else:
        incoming = outgoing
    place = 0
    # In the order of sending: by sender, and for each sender in the order of the pairs.
    for sender, receiver, rows in sorted(
        (pair for pair in pairs if pair[1].rank == me), key=lambda pair: pair[0].rank
    ):
        columns = _columns(sender, receiver, kept)
        if count := rows.rows * len(columns):
            assert into is not None
            piece = incoming[place : place + count].view(rows.rows, len(columns))
            into[rows.first_row - receiver.first_row :][: rows.rows].index_copy_(
                1, (columns - receiver.first_column).to(into.device), piece.to(into.dtype)
            )
            place += count


def _columns(sender: TableShard, receiver: TableShard, kept: torch.Tensor) -> torch.Tensor:
    """Returns the columns that the sender has for the receiver, by their numbers in the target table."""
    numbers = torch.arange(receiver.first_column, min(receiver.first_column + receiver.columns, len(kept)))
    sources = kept[numbers]
    return numbers[(sources >= sender.first_column) & (sources < sender.first_column + sender.columns)]
