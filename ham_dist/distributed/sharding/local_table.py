"""This rank's shard of a table: some of its rows and columns, or nothing.

Shape letters: C rows and d columns of one table.
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

INIT_BLOCK_ROWS = 65_536
"""Rows that are initialized from one seed; constant, so that the values do not depend on the sharding."""


@dataclass(frozen=True)
class LocalTable:
    """This rank's shard of one table.

    Attributes:
        table: The whole table.
        shard: The shard's rows and columns.
        values: (rows, stored columns) of the shard. This is the kernel's own memory: writing to it changes
            the table.
        parameter: The trained parameter if the shard has a gradient; None under a fused kernel.
    """

    table: Table
    shard: TableShard
    values: torch.Tensor
    parameter: nn.Parameter | None

    @property
    def columns(self) -> torch.Tensor:
        """Values of the columns in use, without padding, (rows of the shard, columns in use); a view."""
        return self.values[:, : self.in_use.stop - self.in_use.start]

    @property
    def in_use(self) -> slice:
        """The table's columns in use that are in this shard."""
        first = self.shard.first_column
        return slice(first, max(first, min(self.table.embedding_dim, first + self.shard.columns)))


def local_table(
    placement: Placement, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], name: str
) -> LocalTable | None:
    """Returns this rank's shard of a table of a sharded model; None if it has none.

    Args:
        placement: The table's shards on all ranks.
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


def initialize(local: LocalTable, name: str, seed: int, init_std: float) -> None:
    """Fills `local` from a normal distribution.

    Each block of rows has its own seed, so that a rank only draws the blocks that overlap its shard.

    Args:
        local: This rank's shard.
        name: The table's name, which the seeds depend on.
        seed: The run's seed.
        init_std: Standard deviation.
    """
    first, last = local.shard.first_row, local.shard.first_row + local.shard.rows
    for block in range(first // INIT_BLOCK_ROWS, -(-last // INIT_BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{block}".encode()))
        block_first = block * INIT_BLOCK_ROWS
        rows = min(INIT_BLOCK_ROWS, local.table.num_embeddings - block_first)
        values = torch.randn(rows, local.table.embedding_dim, generator=generator) * init_std
        start, stop = max(first, block_first), min(last, block_first + rows)
        local.columns[start - first : stop - first] = values[
            start - block_first : stop - block_first, local.in_use
        ].to(local.values.device)


def joined_rows(
    placement: Placement, local: LocalTable | None, device: torch.device
) -> Iterator[tuple[TableShard, torch.Tensor]]:
    """Joins the rows of a table whose columns are on several ranks, a chunk at a time.

    Each rank gets about the same number of rows. A collective: iterate to the end.

    Args:
        placement: The table's shards on all ranks.
        local: This rank's shard; None if it has none.
        device: Device of this rank.
    Yields:
        The rows that this rank gets (maybe none) as a shard, and their columns in use, (rows, embedding_dim).
    """
    dim = placement.table.embedding_dim
    for start, stop in windows(placement.shards):
        blocks = even_blocks(start, stop, dim, process_group.world_size())
        mine = blocks[process_group.rank()]
        rows = torch.empty(mine.rows, dim, device=device)
        values = None if local is None else local.values
        move(placement.shards, values, blocks, rows, torch.arange(dim), replicated=False, device=device)
        yield mine, rows
