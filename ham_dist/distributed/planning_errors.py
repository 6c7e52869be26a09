"""What is said of plans that cannot be made: why, and the ways out."""

from typing import TYPE_CHECKING

from ham_dist.distributed.placement import Placement, Plan
from ham_dist.embedding.tables import Table
from ham_dist.errors import BackendError, ShardingError

if TYPE_CHECKING:
    from ham_dist.distributed.planning import Planner


def require_possible(planner: "Planner", table: Table) -> None:
    """Refuse a kind or a memory that cannot take a table at all.

    raises: ShardingError with ways out, BackendError with the nearest that exists.
    """
    _require_memory(planner, table)
    kind = planner.kind_of(table)
    if kind in ("column_wise", "grid") and planner.rule.whole_rows:
        raise ShardingError(
            f'sharding: table {table.field!r} is {kind}, and optimizer.tables = "{planner.rule.name}" makes one number of all columns of a row: '
            "ranks with some of the columns each would make another, and the table would move by another rule than on one rank.\n"
            '  1. A kind that keeps rows whole: "row_wise" or "table_wise".\n'
            '  2. A rule that moves each number by itself: optimizer.tables = "adagrad", "sgd" or "adam".'
        )
    if kind == "data_parallel" and table.precision != "float32":
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, and precision.tables = "{table.precision}" exists in the fused kernels alone: '
            f"a copy on each rank would have gradients, and what its rule remembers, in {table.precision} too.\n"
            '  1. Another kind: "table_wise" or "row_wise".\n'
            '  2. precision.tables = "float32".'
        )
    if kind == "data_parallel" and planner.rule.dense is None:
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, and optimizer.tables = "{planner.rule.name}" exists inside the fused kernels alone, '
            "which data-parallel tables do not have.\n"
            '  1. Another kind: "table_wise" or "row_wise".\n'
            '  2. Another rule: optimizer.tables = "adam", "adagrad" or "rowwise_adagrad".'
        )


def _require_memory(planner: "Planner", table: Table) -> None:
    place = planner.memory_of(table).place
    if place == "device":
        return
    if planner.topology.device == "cpu":
        raise BackendError(
            f'sharding.memory = "{place}", of table {table.field!r}: exists on cuda only; a rank on cpu has its tables in host memory anyway.\n'
            "  Leave sharding.memory and sharding.memories out."
        )
    if planner.rule.fused is None:
        raise BackendError(
            f'sharding.memory = "{place}", of table {table.field!r}: exists in the fused kernels alone, and optimizer.tables = "{planner.rule.name}" '
            "goes through every row at every step.\n"
            '  Set optimizer.tables = "fused_adam", or "rowwise_adagrad", which keeps least.'
        )
    if planner.kind_of(table) == "data_parallel":
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, and sharding.memory = "{place}" exists in the fused kernels alone, which copies '
            "do not have.\n"
            '  1. Another kind: "table_wise" or "row_wise".\n'
            f'  2. On the device: sharding.memories = {{ {table.field} = "device" }}.'
        )
    if place == "cached" and table.precision == "bfloat16":
        raise BackendError(
            f'sharding.memory = "cached", of table {table.field!r}: the cache has no bfloat16.\n'
            '  Set precision.tables = "float16", or sharding.memory = "host".'
        )


def too_much_for_device(planner: "Planner", plan: Plan, rank: int) -> ShardingError:
    """More on a rank than its device may take; `rank` is the fullest."""
    return ShardingError(
        f"sharding: {size(planner.load[rank])} of tables, their gradients and their optimizer's state would lie on rank {rank} of "
        f"{planner.topology.ranks}, and {size(planner.room)} may: sharding.memory_share = {planner.settings.memory_share} of the rank's "
        f"{size(planner.topology.memory)}.\n" + ways_out(planner, _largest(plan, rank).table, sum(planner.load) // planner.topology.ranks)
    )


def too_much_for_host(planner: "Planner", plan: Plan, rank: int) -> ShardingError:
    """More of a rank in its machine's memory than its share of that may take."""
    assert planner.host_room is not None
    assert planner.topology.host_memory is not None
    ranks = planner.topology.ranks
    enough = -(-sum(planner.host_load) // max(1, planner.host_room))
    return ShardingError(
        f"sharding: {size(planner.host_load[rank])} of tables and their optimizer's state would lie in host memory for rank {rank} of {ranks}, and "
        f"{size(planner.host_room)} may: sharding.memory_share = {planner.settings.memory_share} of the {size(planner.topology.host_memory)} that a "
        f"rank has of its host.\n"
        "  1. Fewer columns: a lower model.base_width.\n"
        f"  2. More hosts: {max(enough, ranks + 1)} ranks or more, the tables spread evenly.\n"
        f'  3. On the device: sharding.memories = {{ {_largest(plan, rank).table.field} = "device" }}, or sharding.memory = "auto".'
    )


def _largest(plan: Plan, rank: int) -> Placement:
    return max(plan.placements, key=lambda placement: placement.numbers_of(rank))


def ways_out(planner: "Planner", largest: Table, mean_load: int) -> str:
    """What to do about tables that do not fit, numbered.

    largest:   the largest table of the fullest rank.
    mean_load: bytes a rank, were all tables spread evenly.
    """
    ways = ["Fewer columns: a lower model.base_width."]
    if planner.topology.ranks > 1 and planner.kind_of(largest) not in ("auto", "row_wise"):  # `auto` has tried it
        ways.append(f'Another kind: sharding.tables = {{ {largest.field} = "row_wise" }} spreads table {largest.field!r} over all ranks.')
    enough = -(-mean_load * planner.topology.ranks // max(1, planner.room))
    ways.append(f"More ranks: {max(enough, planner.topology.ranks + 1)} or more, the tables spread evenly.")
    if planner.rule.name == "adam":
        ways.append('A rule that keeps less: optimizer.tables = "rowwise_adagrad" keeps a number a row, "adam" three for each of the table\'s.')
    elif largest.precision == "float32":
        ways.append('Half the bytes of each number: precision.tables = "float16".')
    if planner.topology.device == "cuda":
        ways += _of_host_memory(planner, largest)
    return "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, start=1))


def _of_host_memory(planner: "Planner", largest: Table) -> list[str]:
    on_cpu = "The same run on CPU processes, whose tables lie in the machines' memory."
    if planner.memory_of(largest).place != "device":
        return [on_cpu]
    rule = "" if planner.rule.fused is not None else 'optimizer.tables = "rowwise_adagrad" and '
    return [f'Host memory: {rule}sharding.memory = "auto" puts the largest tables there, with a cache on the GPU.', on_cpu]


def size(count: int) -> str:
    """Bytes, as messages give them."""
    return f"{count / 1e9:,.2f} GB" if count >= 10**8 else f"{count / 1e6:,.3f} MB"
