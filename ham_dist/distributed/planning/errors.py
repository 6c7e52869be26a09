"""Errors of plans that cannot be made: the reason, and the ways out."""

from typing import Literal

from ham_dist.config.units import size_text
from ham_dist.distributed.planning.placement import Placement, Plan
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.embedding.tables import Table
from ham_dist.errors import BackendError, ShardingError

ShortMemory = Literal["device", "host"]
"""The memory that has no room, by its name in BytesHeld."""


def require_possible(request: PlanRequest, table: Table) -> None:
    """Refuse a kind or a memory that cannot take a table at all.

    raises: ShardingError with ways out, BackendError with the nearest that exists.
    """
    _require_memory(request, table)
    kind = request.sharding_type_of(table)
    if kind in ("column_wise", "grid") and request.table_optimizer.whole_rows:
        raise ShardingError(
            f'sharding: table {table.field!r} is {kind}, and optimizer.tables = "{request.table_optimizer.name}" makes one number of all columns of a row: '
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
    if kind == "data_parallel" and request.table_optimizer.dense is None:
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, and optimizer.tables = "{request.table_optimizer.name}" exists inside the fused kernels alone, '
            "which data-parallel tables do not have.\n"
            '  1. Another kind: "table_wise" or "row_wise".\n'
            '  2. Another rule: optimizer.tables = "adam", "adagrad" or "rowwise_adagrad".'
        )


def has_rows_for(rows: int, ranks: int) -> bool:
    """Returns True if blocks of ceil(rows / ranks) rows leave some for the last rank."""
    return -(-rows // ranks) * (ranks - 1) < rows


def require_rows(request: PlanRequest) -> None:
    """Refuses tables that the settings spread by rows over more ranks than they have rows for.

    Raises:
        ShardingError: It names every such table.
    """
    topology = request.topology
    ranks_of = {
        "row_wise": topology.ranks,
        "table_row_wise": topology.ranks_of_host,
        "grid": topology.ranks_of_host,
    }
    spread = {
        table.field: (table.num_embeddings, ranks_of.get(request.sharding_type_of(table), 1))
        for table in request.tables
    }
    short = {field: found for field, found in spread.items() if not has_rows_for(*found)}
    if not short:
        return
    listed = "".join(
        f"  table {field!r}: {rows:,} rows; {ranks:,} ranks with {-(-rows // ranks):,} rows each leave none for the last.\n"
        for field, (rows, ranks) in short.items()
    )
    others = ", ".join(f'{field} = "table_wise"' for field in short)
    enough = min(
        next(count for count in range(1, ranks) if not has_rows_for(rows, count + 1))
        for rows, ranks in short.values()
    )
    raise ShardingError(
        f"sharding: too few rows to spread over the ranks:\n{listed}"
        f"  1. Another kind for {'it' if len(short) == 1 else 'them'}: sharding.sharding_types = {{ {others} }}.\n"
        f"  2. Fewer ranks: {enough} or less."
    )


def _require_memory(request: PlanRequest, table: Table) -> None:
    place = request.memory_of(table).kernel
    if place == "device":
        return
    if request.topology.device == "cpu":
        raise BackendError(
            f'sharding.compute_kernel = "{place}", of table {table.field!r}: exists on cuda only; a rank on cpu has its tables in host memory anyway.\n'
            "  Leave sharding.compute_kernel and sharding.compute_kernels out."
        )
    if request.table_optimizer.fused is None:
        raise BackendError(
            f'sharding.compute_kernel = "{place}", of table {table.field!r}: exists in the fused kernels alone, and optimizer.tables = "{request.table_optimizer.name}" '
            "goes through every row at every step.\n"
            '  Set optimizer.tables = "fused_adam", or "rowwise_adagrad", which keeps least.'
        )
    if request.sharding_type_of(table) == "data_parallel":
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, and sharding.compute_kernel = "{place}" exists in the fused kernels alone, which copies '
            "do not have.\n"
            '  1. Another kind: "table_wise" or "row_wise".\n'
            f'  2. On the device: sharding.compute_kernels = {{ {table.field} = "device" }}.'
        )
    if place == "fused_uvm_caching" and table.precision == "bfloat16":
        raise BackendError(
            f'sharding.compute_kernel = "fused_uvm_caching", of table {table.field!r}: the cache has no bfloat16.\n'
            '  Set precision.tables = "float16", or sharding.compute_kernel = "fused_uvm".'
        )


def too_much_for_device(request: PlanRequest, plan: Plan, rank: int) -> ShardingError:
    """More on a rank than its device may take; `rank` is the fullest."""
    held = request.held(plan)
    copied = sum(
        request.bytes_of(placement.table, placement.sharding_type).device
        for placement in plan.placements
        if placement.replicated
    )
    return ShardingError(
        f"sharding: {size_text(held[rank].device)} of tables, their gradients and their optimizer's state would lie on rank {rank} of "
        f"{request.topology.ranks}, and {size_text(request.room)} may: sharding.memory_share = {request.settings.memory_share} of the rank's "
        f"{size_text(request.topology.memory)}.\n"
        + ways_out(
            request,
            "device",
            _largest(request, plan, rank, "device"),
            sum(of_rank.device for of_rank in held),
            copied,
        )
    )


def too_much_for_host(request: PlanRequest, plan: Plan, rank: int) -> ShardingError:
    """More of a rank in its machine's memory than its share of that may take; `rank` is the fullest."""
    held = request.held(plan)
    assert request.host_room is not None
    assert request.topology.host_memory is not None
    return ShardingError(
        f"sharding: {size_text(held[rank].host)} of tables and their optimizer's state would lie in host memory for rank {rank} of "
        f"{request.topology.ranks}, and {size_text(request.host_room)} may: sharding.memory_share = {request.settings.memory_share} of the "
        f"{size_text(request.topology.host_memory)} that a rank has of its host.\n"
        + ways_out(
            request, "host", _largest(request, plan, rank, "host"), sum(of_rank.host for of_rank in held)
        )
    )


def _largest(request: PlanRequest, plan: Plan, rank: int, memory: ShortMemory) -> Table:
    """The table that takes most of that memory of a rank."""

    def taken(placement: Placement) -> int:
        shard = placement.shard_of(rank)
        return (
            getattr(request.bytes_of(placement.table, placement.sharding_type, shard), memory) if shard else 0
        )

    return max(plan.placements, key=taken).table


def ways_out(request: PlanRequest, memory: ShortMemory, largest: Table, total: int, copied: int = 0) -> str:
    """What to do about tables that do not fit, numbered.

    memory:  the one that is short.
    largest: the table that takes most of it.
    total:   bytes of it on all ranks together.
    copied:  bytes of it that every rank has the same of, however many they are.
    """
    ranks, table_optimizer = request.topology.ranks, request.table_optimizer
    room = request.room if memory == "device" else request.host_room or 0
    ways = ["Fewer columns: a lower model.base_dim."]
    if ranks > 1 and request.sharding_type_of(largest) not in ("auto", "row_wise"):  # `auto` has tried it
        ways.append(
            f'Another kind: sharding.sharding_types = {{ {largest.field} = "row_wise" }} spreads table {largest.field!r} over all ranks.'
        )
    if copied < room or not copied:
        enough = max(-(-(total - ranks * copied) // max(1, room - copied)), ranks + 1)
        more = f"More ranks: {enough}" if memory == "device" else f"More hosts: of {enough} ranks together"
        ways.append(f"{more} or more, the tables spread evenly.")
    kept = sum(not of_row for of_row in table_optimizer.states.values()) + (table_optimizer.fused is None)
    if kept:
        ways.append(
            f'A rule that keeps less: optimizer.tables = "rowwise_adagrad" keeps a number a row, "{table_optimizer.name}" {kept} for each of the table\'s.'
        )
    if table_optimizer.fused is not None and largest.precision == "float32":
        ways.append('Half the bytes of each number: precision.tables = "float16".')
    if memory == "host":
        ways += _of_device(request, largest)
    elif request.topology.device == "cuda":
        ways += [
            *_of_host_memory(request, largest),
            "The same run on CPU processes, whose tables lie in the machines' memory.",
        ]
    return "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, start=1))


def _of_host_memory(request: PlanRequest, largest: Table) -> list[str]:
    """Where else the largest table of a device could be, and what of it lies there that need not."""
    place = request.memory_of(largest).kernel
    if place == "fused_uvm_caching":
        return [
            f'A smaller cache: a lower sharding.cache_load_factor, or none: sharding.compute_kernels = {{ {largest.field} = "fused_uvm" }}.'
        ]
    if place == "fused_uvm":
        on_device = any(request.table_optimizer.states.values())
        return (
            [
                'State in host memory too: optimizer.tables = "adagrad"; what a rule keeps once a row lies on the GPU.'
            ]
            if on_device
            else []
        )
    changes = [] if request.table_optimizer.fused is not None else ['optimizer.tables = "rowwise_adagrad"']
    if request.sharding_type_of(largest) == "data_parallel":
        changes.append(f'sharding.sharding_types = {{ {largest.field} = "table_wise" }}')
    puts = "puts it there, with a cache on the GPU"
    if largest.precision == "bfloat16":  # which has no cache, so that `auto` leaves it where it is
        changes.append(f'sharding.compute_kernels = {{ {largest.field} = "fused_uvm" }}')
        puts = "puts it there"
    elif largest.field in request.user_settings.compute_kernels:
        changes.append(f'sharding.compute_kernels = {{ {largest.field} = "fused_uvm_caching" }}')
    else:
        changes.append('sharding.compute_kernel = "auto"')
        puts = "puts the largest tables there, with a cache on the GPU"
    return [f"Host memory: {' and '.join(changes)} {puts}."]


def _of_device(request: PlanRequest, largest: Table) -> list[str]:
    """Back from host memory; what `auto` put there has no room on the device."""
    asked = request.user_settings
    if largest.field not in asked.compute_kernels and asked.compute_kernel == "auto":
        return []
    or_open = (
        ""
        if asked.compute_kernel == "auto" or largest.field in asked.compute_kernels
        else ', or sharding.compute_kernel = "auto"'
    )
    return [f'On the device: sharding.compute_kernels = {{ {largest.field} = "device" }}{or_open}.']
