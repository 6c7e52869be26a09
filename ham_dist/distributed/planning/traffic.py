"""The cost of a plan, from sizes alone: bytes on each rank, and bytes that ranks exchange in a step.

    B rows of a global batch, W ranks, b = B / W rows per rank, L mean pooling factor of one field, d stored
    columns of a shard

For one shard of a table on rank q, every other rank r exchanges the following with q in a training step
without search (torchrec/distributed/sharding, input and output dist):

    ids, r to q          b L (rows of the shard / rows of the table) + b numbers of 4 bytes: the ids, and how
                         many there are in each row
    vectors, q to r      b d float32: vectors that were looked up, or partial sums of the rows on q
                         (reduce-scatter)
    gradients, r to q    b d float32: their gradients, the same way back

For a shard in host memory, the GPU reads each row for the lookup and again for the update in the backward
kernel (twice with LAMB), together with the row's state that has one number per weight, and writes both once.
This assumes that no row is in the cache and that all ids differ. It is an upper bound: a row that occurs
twice is updated once, and a cached row is read once. The overhead of the bus for short rows, and the row
sampling of the decoupled regularizer, are not counted.

A data-parallel table is looked up locally. Its whole gradient is summed over the ranks by a ring all-reduce:
2 (W - 1) / W C d numbers leave each rank and as many arrive. (CPU processes send a gradient of at most 1 MiB
/ W directly to every rank instead: (W - 1) C d numbers.) The shares of rows assume that all ids are equally
frequent. A few numbers that announce sizes are left out. With table_row_wise and grid the same totals take
two hops, within a host and then between hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ham_dist.distributed.planning.placement import Placement, Plan
from ham_dist.distributed.planning.table_optimizers import TableOptimizer
from ham_dist.distributed.planning.topology import Topology
from ham_dist.embedding.tables import BYTES_PER_NUMBER

ID_BYTES = 4
"""Bytes of an id and of a length, which the reader returns as int32."""


@dataclass
class RankCost:
    """Bytes that one rank holds, and bytes that it sends and receives in a step.

    Attributes:
        tables: Held on the device: shards of tables.
        training_state: Held on the device: gradients and optimizer state.
        host: Held in the host memory of a GPU: tables and optimizer state.
        from_host: Per step: rows and optimizer state that the GPU reads from host memory.
        to_host: Per step: rows and optimizer state that the GPU writes to host memory.
        ids_out: Per step: ids of this rank's batch, sent to the ranks that hold the tables.
        ids_in: Per step: ids of other ranks' batches.
        vectors_out: Per step: vectors looked up here for other ranks; as many bytes of gradients come back.
        vectors_in: Per step: vectors looked up on other ranks for this rank; as many bytes of gradients go
            back.
        copies_out: Per step: gradients of data-parallel tables that are sent.
        copies_in: Per step: gradients of data-parallel tables that are received.
    """

    tables: int = 0
    training_state: int = 0
    host: int = 0
    from_host: int = 0
    to_host: int = 0
    ids_out: int = 0
    ids_in: int = 0
    vectors_out: int = 0
    vectors_in: int = 0
    copies_out: int = 0
    copies_in: int = 0

    @property
    def out(self) -> int:
        """All bytes sent in a step, including the gradients of `vectors_in`."""
        return self.ids_out + self.vectors_out + self.vectors_in + self.copies_out

    @property
    def into(self) -> int:
        """All bytes received in a step, including the gradients of `vectors_out`."""
        return self.ids_in + self.vectors_in + self.vectors_out + self.copies_in

    def __iadd__(self, other: "RankCost") -> "RankCost":
        for name, value in vars(other).items():
            if value:
                setattr(self, name, getattr(self, name) + value)
        return self


def costs_by_rank(
    plan: Plan,
    table_optimizer: TableOptimizer,
    topology: Topology,
    batch_size: int,
    ids_per_row: Mapping[str, float],
) -> list[RankCost]:
    """Returns the bytes that each rank holds and exchanges in a training step.

    Each group of tables, such as the first-order tables, is looked up separately.

    Args:
        batch_size: Rows of a global batch.
        ids_per_row: Mean pooling factor by field; 1 for fields without an entry.
    """
    costs = [RankCost() for _ in range(topology.ranks)]
    for placement in plan.placements:
        ids = ids_per_row.get(placement.table.field, 1.0)
        of_table = _of_table(placement, table_optimizer, topology.ranks, batch_size, ids)
        for total, cost in zip(costs, of_table, strict=True):
            total += cost
    return costs


def _of_table(
    placement: Placement, table_optimizer: TableOptimizer, ranks: int, batch_size: int, ids: float
) -> list[RankCost]:
    costs = [RankCost() for _ in range(ranks)]
    rows = -(-batch_size // ranks)
    all_ids = all_vectors = 0
    for shard in placement.shards:
        table, memory = placement.table, placement.memory
        held = table_optimizer.bytes_of(
            shard.rows,
            shard.rows * shard.columns,
            fused=placement.fused,
            number_bytes=table.number_bytes,
            memory=memory,
        )
        costs[shard.rank] += RankCost(tables=held.tables, training_state=held.training_state, host=held.host)
        if memory.kernel != "device":
            numbers = round(batch_size * ids * shard.rows / table.num_embeddings) * shard.columns
            read = table.number_bytes + table_optimizer.passes * (
                table.number_bytes + table_optimizer.state_bytes_per_number
            )
            costs[shard.rank] += RankCost(
                from_host=numbers * read,
                to_host=numbers * (table.number_bytes + table_optimizer.state_bytes_per_number),
            )
        if placement.replicated:
            copies = 2 * (ranks - 1) * shard.rows * shard.columns * BYTES_PER_NUMBER // ranks
            costs[shard.rank] += RankCost(copies_out=copies, copies_in=copies)
            continue
        of_ids = round(rows * (ids * shard.rows / placement.table.num_embeddings + 1) * ID_BYTES)
        of_vectors = rows * shard.columns * BYTES_PER_NUMBER
        all_ids, all_vectors = all_ids + of_ids, all_vectors + of_vectors
        # A rank has no traffic with its own shard: subtract it here from the sum over all shards that each
        # rank gets below.
        costs[shard.rank] += RankCost(
            ids_out=-of_ids,
            vectors_in=-of_vectors,
            ids_in=(ranks - 1) * of_ids,
            vectors_out=(ranks - 1) * of_vectors,
        )
    for cost in costs:
        cost.ids_out += all_ids
        cost.vectors_in += all_vectors
    return costs
