"""This rank's part of a table.

C rows and d columns of one table; a rank holds some rows and some columns of it, or none
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ham_dist.distributed.planning.placement import Placement, TableShard
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.exchange import even_blocks, move, windows
from ham_dist.embedding.tables import Table

START_ROWS = 65_536
"""Rows that are initialized from one seed; fixed, so that a table's initialization does not depend on how it is spread."""


@dataclass(frozen=True)
class LocalTable:
    """This rank's part of one table.

    table:     what it is a part of.
    shard:     which part.
    values:    (rows, stored columns) of the part; the kernel's own memory, so writing to it moves the table.
    parameter: what is trained where the part has a gradient; None under a fused kernel.
    """

    table: Table
    shard: TableShard
    values: torch.Tensor
    parameter: nn.Parameter | None

    @property
    def columns(self) -> torch.Tensor:
        """(rows of the part, its columns in use), without padding; a view."""
        return self.values[:, : self.in_use.stop - self.in_use.start]

    @property
    def in_use(self) -> slice:
        """Which of the table's columns in use lie here."""
        first = self.shard.first_column
        return slice(first, max(first, min(self.table.embedding_dim, first + self.shard.columns)))


def local_table(
    placement: Placement, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], name: str
) -> LocalTable | None:
    """This rank's part of a table of a sharded model; None if it holds nothing of it.

    Args:
        state: The model's state dict.
        parameters: The model's named parameters.
        name: The table's name in both.
    """
    shard = placement.shard_of(process_group.rank())
    if shard is None:
        return None
    if placement.fused:
        return LocalTable(placement.table, shard, state[name].local_shards()[0].tensor, None)
    parameter = parameters[name]
    return LocalTable(placement.table, shard, parameter.detach(), parameter)


def initialize(local: LocalTable, name: str, seed: int, deviation: float) -> None:
    """Fills `local` from a normal distribution.

    Each block of rows has a seed of its own, so that a rank makes just the blocks that it holds a part of.

    Args:
        name: The table's name, which the seeds depend on.
        deviation: Standard deviation.
    """
    first, last = local.shard.first_row, local.shard.first_row + local.shard.rows
    for block in range(first // START_ROWS, -(-last // START_ROWS)):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{block}".encode()))
        block_first = block * START_ROWS
        rows = min(START_ROWS, local.table.num_embeddings - block_first)
        values = torch.randn(rows, local.table.embedding_dim, generator=generator) * deviation
        start, stop = max(first, block_first), min(last, block_first + rows)
        local.columns[start - first : stop - first] = values[
            start - block_first : stop - block_first, local.in_use
        ].to(local.values.device)


def joined_rows(
    placement: Placement, local: LocalTable | None, device: torch.device
) -> Iterator[tuple[TableShard, torch.Tensor]]:
    """Whole rows of a table whose columns lie on several ranks, some at a time, shared out evenly. A collective: go through to the end.

    local:  this rank's part.
    yields: which rows this rank got, maybe none, and (rows, width) of them: the columns in use.
    """
    width = placement.table.embedding_dim
    for start, stop in windows(placement.shards):
        blocks = even_blocks(start, stop, width, process_group.world_size())
        mine = blocks[process_group.rank()]
        rows = torch.empty(mine.rows, width, device=device)
        values = None if local is None else local.values
        move(placement.shards, values, blocks, rows, torch.arange(width), replicated=False, device=device)
        yield mine, rows
