"""A request for a plan: the tables, the ranks that they are placed on, and the user's settings.

C rows, d stored columns of one table, W ranks
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ham_dist.config.sharding import ShardingSettings, ShardingType
from ham_dist.distributed.planning.placement import Plan, TableShard
from ham_dist.distributed.planning.table_optimizers import DEVICE, BytesHeld, Memory, TableOptimizer
from ham_dist.distributed.planning.topology import Topology
from ham_dist.embedding.tables import Table


@dataclass(frozen=True)
class PlanRequest:
    """All inputs of a plan. Reading them allocates no tables and runs no collective.

    Attributes:
        settings: The sharding type and the compute kernel of each table.
        table_optimizer: The table optimizer, which determines the kernel and the bytes per number.
        topology: The W ranks.
        groups: The tables by path of their EmbeddingBagCollection in the model.
        batch_size: Rows of a global batch; TorchRec's planner estimates traffic from it.
        taken: Bytes in use on each rank before the plan (default: 0).
        asked: The user's own settings, to which messages refer, if `settings` have "auto" values filled in.
    """

    settings: ShardingSettings
    table_optimizer: TableOptimizer
    topology: Topology
    groups: Mapping[str, Sequence[Table]]
    batch_size: int
    taken: Sequence[BytesHeld] = ()
    asked: ShardingSettings | None = None

    @property
    def tables(self) -> list[Table]:
        """The tables of all groups."""
        return [table for group in self.groups.values() for table in group]

    @property
    def user_settings(self) -> ShardingSettings:
        """The user's own settings, to which messages refer."""
        return self.asked or self.settings

    def sharding_type_of(self, table: Table) -> ShardingType | Literal["auto"]:
        """Returns the sharding type in the settings of a table; may be `auto`."""
        return self.settings.sharding_types.get(table.field, self.settings.sharding_type)

    def memory_of(self, table: Table) -> Memory:
        """Returns the memory in the settings of a table; the device if they have `auto`."""
        place = self.settings.compute_kernels.get(table.field, self.settings.compute_kernel)
        if place == "auto":
            return DEVICE
        return Memory(place, self.settings.cache_load_factor if place == "fused_uvm_caching" else 0.0)

    def is_fused(self, sharding_type: ShardingType) -> bool:
        """Returns True if tables of this sharding type use a fused kernel; data-parallel tables have none."""
        return self.table_optimizer.fused is not None and sharding_type != "data_parallel"

    def bytes_of(
        self, table: Table, sharding_type: ShardingType, shard: TableShard | None = None
    ) -> BytesHeld:
        """Returns the bytes of `table`, or of a shard of it, with its gradient and optimizer state."""
        rows, columns = (
            (table.num_embeddings, table.stored_dim) if shard is None else (shard.rows, shard.columns)
        )
        return self.table_optimizer.bytes_of(
            rows,
            rows * columns,
            fused=self.is_fused(sharding_type),
            number_bytes=table.number_bytes,
            memory=self.memory_of(table),
        )

    @cached_property
    def taken_by_rank(self) -> list[BytesHeld]:
        """Bytes in use on each rank before the plan."""
        return list(self.taken) or [BytesHeld(0, 0, 0)] * self.topology.ranks

    def held(self, plan: Plan) -> list[BytesHeld]:
        """Returns the bytes in use on each rank under `plan`, including those in use before it."""
        held = list(self.taken_by_rank)
        for placement in plan.placements:
            for shard in placement.shards:
                of_shard = self.table_optimizer.bytes_of(
                    shard.rows,
                    shard.rows * shard.columns,
                    fused=placement.fused,
                    number_bytes=placement.table.number_bytes,
                    memory=placement.memory,
                )
                held[shard.rank] = held[shard.rank].plus(of_shard)
        return held

    @property
    def room(self) -> int:
        """Bytes of a rank's device that tables may take."""
        return int(self.topology.memory * self.settings.memory_share)

    @property
    def host_room(self) -> int | None:
        """Bytes of a rank's share of host memory that tables may take; None if it is unknown."""
        if self.topology.host_memory is None:
            return None
        return int(self.topology.host_memory * self.settings.memory_share)

    def movable(self) -> list[str]:
        """Returns the fields with compute kernel `auto` whose tables can be cached, the largest first."""
        numbers: dict[str, int] = {}
        for table in self.tables:
            open_to_choice = (
                self.settings.compute_kernels.get(table.field, self.settings.compute_kernel) == "auto"
                and self.sharding_type_of(table) != "data_parallel"
            )
            if (
                self.topology.device == "cuda"
                and self.table_optimizer.fused is not None
                and table.precision != "bfloat16"
                and open_to_choice
            ):
                numbers[table.field] = numbers.get(table.field, 0) + table.num_embeddings * table.stored_dim
        return sorted(numbers, key=lambda field: (-numbers[field], field))
