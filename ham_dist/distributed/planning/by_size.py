"""Plans by size alone: each table, largest first, is placed on the ranks with the most free memory.

C rows, d stored columns of one table, W ranks
"""

from collections.abc import Iterable
from itertools import pairwise

from ham_dist.config.sharding import ShardingType
from ham_dist.distributed.planning.errors import has_rows_for, require_rows
from ham_dist.distributed.planning.placement import Placement, Plan, TableShard
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.embedding.tables import KERNEL_DIM, Table

LARGE_BYTES = 1 << 30
"""Under `auto` on CPU, a table is row_wise if it takes more bytes than this, with gradient and optimizer
state, and more than a rank's equal share of all tables. For smaller tables, a lookup on one rank is faster
than exchanging partial sums."""


def plan_by_size(request: PlanRequest) -> Plan:
    """Returns the plan for `request`.

    Raises:
        ShardingError: Some tables have too few rows to be spread over the ranks.
    """
    require_rows(request)
    return _BySize(request).plan()


class _BySize:
    """Places tables one by one, and counts the bytes on each rank's device and in its host memory."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.table_optimizer, self.topology = request.table_optimizer, request.topology
        self.load = [held.device for held in request.taken_by_rank]
        self.host_load = [held.host for held in request.taken_by_rank]

    def plan(self) -> Plan:
        """Returns the plan for all tables."""
        tables = [(table, path) for path, group in self.request.groups.items() for table in group]
        total = sum(self.request.bytes_of(table, "table_wise").device for table, _ in tables)
        placed: dict[tuple[str, str], Placement] = {}
        for table, path in sorted(
            tables,
            key=lambda entry: (-entry[0].num_embeddings * entry[0].stored_dim, entry[1], entry[0].field),
        ):
            sharding_type = self.request.sharding_type_of(table)
            if sharding_type == "auto":
                sharding_type = self._sharding_type_by_size(table, total)
            placement = self._place(table, sharding_type)
            self._add(placement)
            placed[path, table.field] = placement
        return Plan(
            {
                path: {table.field: placed[path, table.field] for table in group}
                for path, group in self.request.groups.items()
            }
        )

    def _sharding_type_by_size(self, table: Table, total: int) -> ShardingType:
        size = self.request.bytes_of(table, "table_wise").device
        spreads = has_rows_for(table.num_embeddings, self.topology.ranks)
        too_large = size > self.request.room - min(self.load)
        more_than_its_share = size > LARGE_BYTES and size * self.topology.ranks > total
        return (
            "row_wise"
            if self.topology.ranks > 1 and spreads and (too_large or more_than_its_share)
            else "table_wise"
        )

    def _place(self, table: Table, sharding_type: ShardingType) -> Placement:
        unit = KERNEL_DIM if self.table_optimizer.fused is not None else 1
        ranks = range(self.topology.ranks)
        hosts = [
            range(host * self.topology.ranks_of_host, (host + 1) * self.topology.ranks_of_host)
            for host in range(self.topology.hosts)
        ]
        dim = table.stored_dim
        if sharding_type == "table_wise":
            shards = [TableShard(self._emptiest(table, ranks, 1)[0], 0, table.num_embeddings, 0, dim)]
        elif sharding_type == "row_wise":
            shards = self._rows(table, ranks, 0, dim)
        elif sharding_type == "column_wise":
            blocks = _column_blocks(dim, unit, len(ranks))
            shards = [
                TableShard(rank, 0, table.num_embeddings, *block)
                for rank, block in zip(self._emptiest(table, ranks, len(blocks)), blocks, strict=True)
            ]
        elif sharding_type == "table_row_wise":
            host = min(hosts, key=lambda host: (*self._fullness(table, host), host.start))
            shards = self._rows(table, host, 0, dim)
        elif sharding_type == "grid":
            blocks = _column_blocks(dim, unit, len(hosts))
            emptiest = sorted(hosts, key=lambda host: (*self._fullness(table, host), host.start))[
                : len(blocks)
            ]
            in_order = sorted(emptiest, key=lambda host: host.start)
            shards = [
                shard
                for host, block in zip(in_order, blocks, strict=True)
                for shard in self._rows(table, host, *block)
            ]
        else:
            shards = [TableShard(rank, 0, table.num_embeddings, 0, dim) for rank in ranks]
        return Placement(
            table,
            sharding_type,
            self.request.is_fused(sharding_type),
            tuple(shards),
            self.request.memory_of(table),
        )

    def _rows(self, table: Table, ranks: range, first_column: int, columns: int) -> list[TableShard]:
        """Returns blocks of ceil(C / ranks) rows, as TorchRec distributes ids; the last may be smaller."""
        block = -(-table.num_embeddings // len(ranks))
        return [
            TableShard(
                rank, number * block, min(block, table.num_embeddings - number * block), first_column, columns
            )
            for number, rank in enumerate(ranks)
        ]

    def _emptiest(self, table: Table, ranks: range, count: int) -> list[int]:
        return sorted(sorted(ranks, key=lambda rank: (*self._fullness(table, [rank]), rank))[:count])

    def _fullness(self, table: Table, ranks: Iterable[int]) -> tuple[int, int]:
        """Returns the bytes in use on `ranks` as a pair, first those of the memory that `table` fills.

        With fused_uvm this is host memory; otherwise the device, also with fused_uvm_caching, whose cache is
        there.
        """
        device, host = (sum(load[rank] for rank in ranks) for load in (self.load, self.host_load))
        return (host, device) if self.request.memory_of(table).kernel == "fused_uvm" else (device, host)

    def _add(self, placement: Placement) -> None:
        for shard in placement.shards:
            held = self.request.bytes_of(placement.table, placement.sharding_type, shard)
            self.load[shard.rank] += held.device
            self.host_load[shard.rank] += held.host


def _column_blocks(dim: int, unit: int, most: int) -> list[tuple[int, int]]:
    """Returns (first column, columns) of at most `most` nearly equal blocks, in multiples of `unit`."""
    units = -(-dim // unit)
    count = min(most, units)
    edges = [min(dim, units * number // count * unit) for number in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]
