"""What a plan costs: bytes on each rank, and bytes that go between ranks in a step; from sizes alone.

    B rows of a global batch, W ranks, b = B / W rows a rank, L ids a row of one field, d stored columns of a shard

Of one shard of a table on rank q, every other rank r and q exchange in a plain training step (torchrec/distributed/sharding: input and output dist):

    ids, r to q            b L (rows of the shard / rows of the table) + b    numbers of 4 bytes: ids, and how many there are in each row
    vectors, q to r        b d                                               float32: looked up, or partial sums of what q has (reduce-scatter)
    gradients, r to q      b d                                               float32: the same way back

Of a shard in host memory the GPU reads each row for the lookup and again where the backward kernel moves it (twice under LAMB), with the state that it
keeps for each number, and writes both once: no row being in the cache, and each id another row. A row that comes twice is moved once and a cached one
comes once, so that is less; what the bus adds to short rows, and the turns of the decoupled regularizer, are not counted.

A data-parallel table has nothing looked up elsewhere, and its whole gradient is added up over ranks: 2 (W - 1) / W C d numbers out of each rank
and as many in, around a ring. (Between CPU processes a gradient of at most 1 MiB / W goes to every rank at once instead: (W - 1) C d.) Row shares are
those of ids that come alike often; a few numbers that announce sizes are left out. Under table_row_wise and grid the same totals go in two hops,
within a host and then between hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ham_dist.distributed.planning.placement import Placement, Plan
from ham_dist.distributed.planning.table_optimizers import TableOptimizer
from ham_dist.distributed.planning.topology import Topology
from ham_dist.embedding.tables import BYTES_PER_NUMBER

ID_BYTES = 4
"""Of an id and of a length: the reader gives int32."""


@dataclass
class RankCost:
    """Bytes of one rank.

    tables, beside:           held on the device: the tables' shards; their gradients and the optimizer's state.
    host:                     held in the machine's memory beside a GPU: tables and state.
    from_host, to_host:       a step: rows of such tables and their state that the GPU reads and writes there.
    ids_out, ids_in:          a step: ids of this rank's rows to those that hold the tables; other ranks' ids.
    vectors_out, vectors_in:  a step: what was looked up here for others; for this rank's rows elsewhere. Gradients go the same ways back.
    copies_out, copies_in:    a step: gradients of data-parallel tables.
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
        """All that leaves it in a step; the gradients of `vectors_in` among it."""
        return self.ids_out + self.vectors_out + self.vectors_in + self.copies_out

    @property
    def into(self) -> int:
        """All that comes in a step."""
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
    """What each rank holds and exchanges in a training step of `batch_size` rows over all ranks.

    ids_per_row: mean number of ids of a row, by field; 1 for those not named. Each group of tables (first-order ones too) is looked up by itself.
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
        # Its own shard costs a rank no traffic; it is subtracted here from what all shards cost every rank.
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
