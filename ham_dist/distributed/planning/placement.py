"""Which rank holds which shard of which table, as read by sharding, Gram matrices, slicing, export and
checkpoints.

    C rows, d stored columns of one table

A sharding type is a way to cut a table into shards. Code that reads a plan needs only the resulting
rectangles.
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

from ham_dist.config.sharding import ShardingType
from ham_dist.distributed.internals import EnumerableShardingSpec, ShardMetadata
from ham_dist.distributed.planning.table_optimizers import DEVICE, Memory
from ham_dist.embedding.tables import BYTES_PER_NUMBER, Table

TORCHREC_SHARDING_TYPE: dict[ShardingType, TorchRecShardingType] = {
    "table_wise": TorchRecShardingType.TABLE_WISE,
    "row_wise": TorchRecShardingType.ROW_WISE,
    "column_wise": TorchRecShardingType.COLUMN_WISE,
    "table_row_wise": TorchRecShardingType.TABLE_ROW_WISE,
    "grid": TorchRecShardingType.GRID_SHARD,
    "data_parallel": TorchRecShardingType.DATA_PARALLEL,
}
"""TorchRec's name of each sharding type."""

FUSED_KERNEL = {
    "device": EmbeddingComputeKernel.FUSED,
    "fused_uvm": EmbeddingComputeKernel.FUSED_UVM,
    "fused_uvm_caching": EmbeddingComputeKernel.FUSED_UVM_CACHING,
}
"""TorchRec's name of each compute kernel of `sharding.compute_kernel`."""

PIECE_BYTES = 1 << 27
"""Bytes of a table that a checkpoint writes or reads at a time; torch keeps a second copy of them
meanwhile."""

ROWS_SPREAD = frozenset({"row_wise", "table_row_wise", "grid"})
"""Sharding types that may spread the ids of one bag over several ranks. Each rank adds up the vectors that it
holds, and a reduce-scatter adds up the partial sums of the ranks."""


@dataclass(frozen=True)
class TableShard:
    """The rectangle of a table on one rank.

    It has the rows [first_row, first_row + rows) and the columns [first_column, first_column + columns).
    """

    rank: int
    first_row: int
    rows: int
    first_column: int
    columns: int

    def within(self, start: int, stop: int) -> "TableShard":
        """Returns the rows of the shard that are in the rows [start, stop) of the table; may be empty."""
        first = min(max(self.first_row, start), stop)
        last = max(min(self.first_row + self.rows, stop), first)
        return TableShard(self.rank, first, last - first, self.first_column, self.columns)

    def strided(self, phase: int, stride: int) -> "TableShard":
        """Returns the shard of the table that has only the rows phase, phase + stride, and so on.

        Rows are numbered as in the smaller table; the shard may be empty.
        """
        first, last = (-((phase - row) // stride) for row in (self.first_row, self.first_row + self.rows))
        return TableShard(
            self.rank, max(0, first), max(0, last) - max(0, first), self.first_column, self.columns
        )


@dataclass(frozen=True)
class Placement:
    """The shards of one table, and how they are stored.

    Attributes:
        table: The table.
        sharding_type: How the table is cut.
        fused: True if a fused kernel updates the table inside the backward pass; otherwise its shards are
            parameters with gradients.
        shards: Shards that cover the table without overlap, at most one per rank; with data_parallel, a copy
            of the whole table for each rank.
        memory: The memory in which each rank stores its shard.
    """

    table: Table
    sharding_type: ShardingType
    fused: bool
    shards: tuple[TableShard, ...]
    memory: Memory = DEVICE

    @property
    def replicated(self) -> bool:
        """True if every rank holds a copy of the whole table."""
        return self.sharding_type == "data_parallel"

    @property
    def spreads_rows(self) -> bool:
        """True if TorchRec adds up partial sums of a bag over ranks."""
        return self.sharding_type in ROWS_SPREAD

    @cached_property
    def splits_columns(self) -> bool:
        """True if some rank holds only some of the columns of its rows."""
        return any(shard.columns != self.table.stored_dim for shard in self.shards)

    @cached_property
    def shares_rows(self) -> bool:
        """True if the rows are spread over several ranks, each row with all its columns on one rank."""
        return not self.replicated and not self.splits_columns and len(self.shards) > 1

    def shard_of(self, rank: int) -> TableShard | None:
        """Returns the shard on `rank`, or None."""
        return next((shard for shard in self.shards if shard.rank == rank), None)

    def numbers_of(self, rank: int) -> int:
        """Returns how many of the table's numbers are on `rank`."""
        shard = self.shard_of(rank)
        return shard.rows * shard.columns if shard else 0

    @property
    def bytes(self) -> int:
        """Bytes of the weights on all ranks, including copies; without gradients and optimizer state."""
        return sum(shard.rows * shard.columns for shard in self.shards) * self.table.number_bytes

    def row_state_shards(self) -> tuple[TableShard, ...]:
        """Returns the shards of optimizer state with one number per row, as of a (C, 1) table.

        Requires that no rank holds only part of a row.
        """
        return tuple(TableShard(shard.rank, shard.first_row, shard.rows, 0, 1) for shard in self.shards)

    def sharding(self, device: torch.device, ranks_of_host: int) -> ParameterSharding:
        """Returns the placement in TorchRec's form.

        It is not made by TorchRec's planner, which allows the dense kernel only with data_parallel and no
        row_wise on CPU, although both work.

        Args:
            device: The kind of device of all ranks.
            ranks_of_host: Ranks per host, from which the device number of each shard follows.
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
        """Returns the shards in torch's form, of the table or (`of_row`) of one number per row."""
        return [
            _metadata(shard, _device_of(shard.rank, device, ranks_of_host), of_row=of_row)
            for shard in self.shards
        ]

    def piece_metadata(
        self, device: torch.device, ranks_of_host: int, *, of_row: bool = False
    ) -> list[tuple[int, ShardMetadata]]:
        """Returns shard_metadata() cut into pieces of at most PIECE_BYTES, in the order of their rows.

        Returns:
            For each piece, the rank that holds it, and its metadata.
        """
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
        """Returns the table's entry in plan.json; rows and columns of a shard are [first, last + 1]."""
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
    """The placements of all tables of a model.

    Attributes:
        groups: Placements by the path of an EmbeddingBagCollection in the model, and by table name, in the
            order of the tables.
    """

    groups: Mapping[str, Mapping[str, Placement]]

    @property
    def placements(self) -> Sequence[Placement]:
        """All placements, group by group."""
        return [placement for group in self.groups.values() for placement in group.values()]

    @property
    def needs_equal_batches(self) -> bool:
        """True if all ranks need batches of the same size, as the reduce-scatter of partial sums does."""
        return any(placement.spreads_rows for placement in self.placements)

    @property
    def uses_host_memory(self) -> bool:
        """True if some tables of GPUs are in host memory."""
        return any(placement.memory.kernel != "device" for placement in self.placements)

    @property
    def caches(self) -> bool:
        """True if some tables have a cache on the GPU, which may hold newer rows than the table itself."""
        return any(placement.memory.kernel == "fused_uvm_caching" for placement in self.placements)

    def describe(self) -> list[dict[str, Any]]:
        """Returns the content of the run folder's plan.json."""
        return [placement.describe() for placement in self.placements]


def cache_params(memory: Memory) -> CacheParams | None:
    """Returns TorchRec's cache settings of a table; None without a cache."""
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
