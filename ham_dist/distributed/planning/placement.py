"""Which rank holds which rectangle of which table: the one description that sharding, Gram matrices, slicing, export and checkpoints read.

    C rows, d stored columns of one table

A kind of sharding is a way to cut a table into shards; once it is cut, only the rectangles matter.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import CacheParams, ParameterSharding
from torchrec.distributed.types import ShardingType as TorchRecShardingType

from ham_dist.config.schema import ShardingType
from ham_dist.distributed.internals import EnumerableShardingSpec, ShardMetadata
from ham_dist.distributed.planning.table_optimizers import DEVICE, Memory
from ham_dist.embedding.tables import BYTES_PER_NUMBER, Table

TORCHREC_SHARDING_TYPE = {
    "table_wise": TorchRecShardingType.TABLE_WISE,
    "row_wise": TorchRecShardingType.ROW_WISE,
    "column_wise": TorchRecShardingType.COLUMN_WISE,
    "table_row_wise": TorchRecShardingType.TABLE_ROW_WISE,
    "grid": TorchRecShardingType.GRID_SHARD,
    "data_parallel": TorchRecShardingType.DATA_PARALLEL,
}
"""TorchRec's name of each kind."""

FUSED_KERNEL = {
    "device": EmbeddingComputeKernel.FUSED,
    "fused_uvm": EmbeddingComputeKernel.FUSED_UVM,
    "fused_uvm_caching": EmbeddingComputeKernel.FUSED_UVM_CACHING,
}
"""TorchRec's name of the fused kernel over each memory."""

PIECE_BYTES = 1 << 27
"""Bytes of a table that a checkpoint writes or reads at a time: torch holds a second copy of what is under way."""

ROWS_SPREAD = frozenset({"row_wise", "table_row_wise", "grid"})
"""Kinds under which the ids of one bag can lie on several ranks. Every rank then adds up what it has, and a reduce-scatter adds up the ranks."""


@dataclass(frozen=True)
class TableShard:
    """A rectangle of a table on one rank: rows [first_row, first_row + rows) of columns [first_column, first_column + columns)."""

    rank: int
    first_row: int
    rows: int
    first_column: int
    columns: int

    def within(self, start: int, stop: int) -> "TableShard":
        """What of it lies in the rows [start, stop) of the table; maybe no row."""
        first = min(max(self.first_row, start), stop)
        last = max(min(self.first_row + self.rows, stop), first)
        return TableShard(self.rank, first, last - first, self.first_column, self.columns)

    def strided(self, phase: int, stride: int) -> "TableShard":
        """What of it lies in the table of the rows phase, phase + stride, phase + 2 stride ...; maybe no row."""
        first, last = (-((phase - row) // stride) for row in (self.first_row, self.first_row + self.rows))
        return TableShard(
            self.rank, max(0, first), max(0, last) - max(0, first), self.first_column, self.columns
        )


@dataclass(frozen=True)
class Placement:
    """Where one table lies.

    sharding_type:  how it was cut.
    fused: whether its kernel steps inside the backward pass; else its shards are parameters with a gradient.
    shards: cover the table without overlap, at most one a rank; under data_parallel one whole copy for each rank.
    memory: where each rank keeps its shard.
    """

    table: Table
    sharding_type: ShardingType
    fused: bool
    shards: tuple[TableShard, ...]
    memory: Memory = DEVICE

    @property
    def replicated(self) -> bool:
        """Whether every rank holds all of it."""
        return self.sharding_type == "data_parallel"

    @property
    def spreads_rows(self) -> bool:
        """Whether TorchRec adds up partial sums of a bag over ranks."""
        return self.sharding_type in ROWS_SPREAD

    @cached_property
    def splits_columns(self) -> bool:
        """Whether a rank may hold only some of the columns of its rows."""
        return any(shard.columns != self.table.stored_dim for shard in self.shards)

    @cached_property
    def shares_rows(self) -> bool:
        """Whether the rows lie on several ranks, each row with all its columns on one."""
        return not self.replicated and not self.splits_columns and len(self.shards) > 1

    def shard_of(self, rank: int) -> TableShard | None:
        """What of it lies on `rank`."""
        return next((shard for shard in self.shards if shard.rank == rank), None)

    def numbers_of(self, rank: int) -> int:
        """How many of its numbers lie on `rank`."""
        shard = self.shard_of(rank)
        return shard.rows * shard.columns if shard else 0

    @property
    def bytes(self) -> int:
        """Of its numbers on all ranks, copies among them; of nothing that training keeps beside them."""
        return sum(shard.rows * shard.columns for shard in self.shards) * self.table.number_bytes

    def row_state_shards(self) -> tuple[TableShard, ...]:
        """The shards of a vector with one number for each row, where no rank holds a shard of a row: row-wise optimizer state lies so."""
        return tuple(TableShard(shard.rank, shard.first_row, shard.rows, 0, 1) for shard in self.shards)

    def sharding(self, device: torch.device, ranks_of_host: int) -> ParameterSharding:
        """The same for TorchRec. Its planner refuses the dense kernel outside data-parallel and lists no row-wise on CPU, though both work.

        ranks_of_host: how many of the ranks share a machine, which decides on which of its devices a shard lies.
        """
        kernel = FUSED_KERNEL[self.memory.kernel] if self.fused else EmbeddingComputeKernel.DENSE
        shards = self.shard_metadata(device, ranks_of_host)
        return ParameterSharding(
            sharding_type=TORCHREC_SHARDING_TYPE[self.sharding_type].value,
            compute_kernel=kernel.value,
            ranks=[shard.rank for shard in self.shards],
            sharding_spec=None if self.replicated else EnumerableShardingSpec(shards),
            cache_params=cache_params(self.memory),
        )

    def shard_metadata(
        self, device: torch.device, ranks_of_host: int, *, of_row: bool = False
    ) -> list[ShardMetadata]:
        """The shards in torch's words, of the table or (`of_row`) of a vector with one number a row."""
        return [
            _metadata(shard, _device_of(shard.rank, device, ranks_of_host), of_row=of_row)
            for shard in self.shards
        ]

    def piece_metadata(
        self, device: torch.device, ranks_of_host: int, *, of_row: bool = False
    ) -> list[tuple[int, ShardMetadata]]:
        """The same cut into pieces of at most PIECE_BYTES, each with the rank that holds it; the pieces of a shard in the order of their rows."""
        pieces = []
        for shard in self.shards:
            rows = max(1, PIECE_BYTES // (BYTES_PER_NUMBER * (1 if of_row else max(1, shard.columns))))
            edges = [
                *range(shard.first_row, shard.first_row + shard.rows, rows),
                shard.first_row + shard.rows,
            ]
            device_of_rank = _device_of(shard.rank, device, ranks_of_host)
            for start, stop in itertools.pairwise(edges):
                pieces.append(
                    (shard.rank, _metadata(shard.within(start, stop), device_of_rank, of_row=of_row))
                )
        return pieces

    def describe(self) -> dict[str, Any]:
        """As plain data, for the run folder's plan.json; rows and columns of a shard as [first, last + 1]."""
        return {
            "table": self.table.field,
            "sharding_type": self.sharding_type,
            "kernel": "fused" if self.fused else "dense",
            "memory": self.memory.kernel,
            "rows": self.table.num_embeddings,
            "stored_dim": self.table.stored_dim,
            "precision": self.table.precision,
            "bytes": self.bytes,
            "parts": [
                {
                    "rank": shard.rank,
                    "rows": [shard.first_row, shard.first_row + shard.rows],
                    "columns": [shard.first_column, shard.first_column + shard.columns],
                }
                for shard in self.shards
            ],
        }


@dataclass(frozen=True)
class Plan:
    """Where all tables of a model lie.

    groups: placements by place in the model (of an EmbeddingBagCollection) and table name, in the order of the tables.
    """

    groups: Mapping[str, Mapping[str, Placement]]

    @property
    def placements(self) -> Sequence[Placement]:
        """All of them, group by group."""
        return [placement for group in self.groups.values() for placement in group.values()]

    @property
    def needs_equal_batches(self) -> bool:
        """Whether every rank must hold as many rows of a batch: the reduce-scatter of spread rows wants pieces of one size."""
        return any(placement.spreads_rows for placement in self.placements)

    @property
    def uses_host_memory(self) -> bool:
        """Whether a GPU has some of its tables in its machine's memory."""
        return any(placement.memory.kernel != "device" for placement in self.placements)

    @property
    def caches(self) -> bool:
        """Whether the last word on some rows may lie in a cache, and not where the table does."""
        return any(placement.memory.kernel == "fused_uvm_caching" for placement in self.placements)

    def describe(self) -> list[dict[str, Any]]:
        """As plain data, for the run folder's plan.json."""
        return [placement.describe() for placement in self.placements]


def cache_params(memory: Memory) -> CacheParams | None:
    """For TorchRec: how much of a cached table the device has room for."""
    return CacheParams(load_factor=memory.cache_load_factor) if memory.kernel == "fused_uvm_caching" else None


def _metadata(shard: TableShard, device: str, *, of_row: bool) -> ShardMetadata:
    offsets, sizes = [shard.first_row, shard.first_column], [shard.rows, shard.columns]
    return ShardMetadata(offsets[:1], sizes[:1], device) if of_row else ShardMetadata(offsets, sizes, device)


def _device_of(rank: int, device: torch.device, ranks_of_host: int) -> str:
    return (
        f"rank:{rank}/{device.type}:{rank % ranks_of_host}"
        if device.type == "cuda"
        else f"rank:{rank}/{device.type}"
    )
