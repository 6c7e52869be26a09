"""Errors for plans that cannot be made: the reason, and numbered ways to change the settings."""

from typing import Literal

from ham_dist.config.units import size_text
from ham_dist.distributed.planning.placement import Placement, Plan
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.embedding.tables import Table
from ham_dist.errors import BackendError, ShardingError

ShortMemory = Literal["device", "host"]
"""The memory that is too small, by its name in BytesHeld."""


def require_possible(request: PlanRequest, table: Table) -> None:
    """Checks that a table's settings can be combined, whatever the table's size.

    Raises:
        ShardingError: The sharding type cannot be used for the table; lists the alternatives.
        BackendError: The compute kernel does not exist for the table; names the nearest one that does.
    """
    _require_compute_kernel(request, table)
    sharding_type = request.sharding_type_of(table)
    optimizer = request.table_optimizer
    if sharding_type in ("column_wise", "grid") and optimizer.whole_rows:
        raise ShardingError(
            f"sharding: table {table.field!r} is {sharding_type}, which stores the columns of a row on "
            f'several ranks, but optimizer.tables = "{optimizer.name}"\n'
            "computes one number from all columns of a row. Each rank would compute it from its own columns "
            "only, and the table would be trained differently than on one rank.\n"
            '  1. Use a sharding type that keeps rows whole: "row_wise" or "table_wise".\n'
            '  2. Use a table optimizer that updates each number separately: optimizer.tables = "adagrad", '
            '"sgd" or "adam".'
        )
    if sharding_type == "data_parallel" and table.precision != "float32":
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, but precision.tables = "{table.precision}" '
            "exists only in the fused kernels, which data-parallel tables do not use:\n"
            f"their gradients and optimizer state would be {table.precision} too.\n"
            '  1. Use another sharding type: "table_wise" or "row_wise".\n'
            '  2. Set precision.tables = "float32".'
        )
    if sharding_type == "data_parallel" and optimizer.dense is None:
        raise ShardingError(
            f'sharding: table {table.field!r} is data_parallel, but optimizer.tables = "{optimizer.name}" '
            "exists only in the fused kernels, which data-parallel tables do not use.\n"
            '  1. Use another sharding type: "table_wise" or "row_wise".\n'
            '  2. Use another table optimizer: optimizer.tables = "adam", "adagrad" or "rowwise_adagrad".'
        )


def has_rows_for(rows: int, ranks: int) -> bool:
    """Returns True if blocks of ceil(rows / ranks) rows leave at least one row for the last rank."""
    return -(-rows // ranks) * (ranks - 1) < rows


def require_rows(request: PlanRequest) -> None:
    """Checks that each table has enough rows for the ranks that the settings spread its rows over.

    Raises:
        ShardingError: Some tables have too few rows; names all of them.
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
        f"  table {field!r}: {rows:,} rows on {ranks:,} ranks; blocks of {-(-rows // ranks):,} rows leave "
        "none for the last rank.\n"
        for field, (rows, ranks) in short.items()
    )
    others = ", ".join(f'{field} = "table_wise"' for field in short)
    enough = min(
        next(count for count in range(1, ranks) if not has_rows_for(rows, count + 1))
        for rows, ranks in short.values()
    )
    tables = "this table" if len(short) == 1 else "these tables"
    raise ShardingError(
        f"sharding: too few rows to spread over the ranks:\n{listed}"
        f"  1. Use another sharding type for {tables}: sharding.sharding_types = {{ {others} }}.\n"
        f"  2. Use fewer ranks: at most {enough}."
    )


def _require_compute_kernel(request: PlanRequest, table: Table) -> None:
    kernel = request.memory_of(table).kernel
    if kernel == "device":
        return
    setting = f'sharding.compute_kernel = "{kernel}" of table {table.field!r}'
    if request.topology.device == "cpu":
        raise BackendError(
            f"{setting}: this kernel exists only on GPU (cuda), and this plan is for CPU, where all tables "
            "are in host memory anyway.\n"
            "  Remove sharding.compute_kernel and sharding.compute_kernels from the settings."
        )
    if request.table_optimizer.fused is None:
        raise BackendError(
            f'{setting}: this is a fused kernel, but optimizer.tables = "{request.table_optimizer.name}" '
            "uses the dense kernel, which updates every row at every step.\n"
            '  Set optimizer.tables = "fused_adam", or "rowwise_adagrad", which has the smallest state.'
        )
    if request.sharding_type_of(table) == "data_parallel":
        raise ShardingError(
            f"{setting}: this is a fused kernel, but the table is data_parallel, and data-parallel tables "
            "use the dense kernel.\n"
            '  1. Use another sharding type: "table_wise" or "row_wise".\n'
            f'  2. Keep the table on the device: sharding.compute_kernels = {{ {table.field} = "device" }}.'
        )
    if kernel == "fused_uvm_caching" and table.precision == "bfloat16":
        raise BackendError(
            f"{setting}: the cache does not support bfloat16.\n"
            '  Set precision.tables = "float16", or sharding.compute_kernel = "fused_uvm".'
        )


def too_much_for_device(request: PlanRequest, plan: Plan, rank: int) -> ShardingError:
    """Returns the error for a plan that needs more device memory than there is.

    Args:
        rank: The rank that needs most.
    """
    held = request.held(plan)
    copied = sum(
        request.bytes_of(placement.table, placement.sharding_type).device
        for placement in plan.placements
        if placement.replicated
    )
    return ShardingError(
        f"sharding: the tables do not fit. Rank {rank} of {request.topology.ranks} would hold "
        f"{size_text(held[rank].device)} of tables, gradients and optimizer state;\n"
        f"the limit is {size_text(request.room)} (sharding.memory_share = {request.settings.memory_share} of "
        f"the rank's {size_text(request.topology.memory)}). Ways to make them fit:\n"
        + ways_out(
            request,
            "device",
            _largest(request, plan, rank, "device"),
            sum(of_rank.device for of_rank in held),
            copied,
        )
    )


def too_much_for_host(request: PlanRequest, plan: Plan, rank: int) -> ShardingError:
    """Returns the error for a plan that needs more host memory than there is.

    Args:
        rank: The rank that needs most.
    """
    held = request.held(plan)
    assert request.host_room is not None
    assert request.topology.host_memory is not None
    return ShardingError(
        f"sharding: the tables do not fit in host memory. Rank {rank} of {request.topology.ranks} would hold "
        f"{size_text(held[rank].host)} of tables and optimizer state there;\n"
        f"the limit is {size_text(request.host_room)} (sharding.memory_share = "
        f"{request.settings.memory_share} of the {size_text(request.topology.host_memory)} of host memory "
        "per rank). Ways to make them fit:\n"
        + ways_out(
            request, "host", _largest(request, plan, rank, "host"), sum(of_rank.host for of_rank in held)
        )
    )


def _largest(request: PlanRequest, plan: Plan, rank: int, memory: ShortMemory) -> Table:
    """Returns the table that takes most of this memory on a rank."""

    def taken(placement: Placement) -> int:
        shard = placement.shard_of(rank)
        return (
            getattr(request.bytes_of(placement.table, placement.sharding_type, shard), memory) if shard else 0
        )

    return max(plan.placements, key=taken).table


def ways_out(request: PlanRequest, memory: ShortMemory, largest: Table, total: int, copied: int = 0) -> str:
    """Returns a numbered list of changes that make tables fit.

    Args:
        memory: The memory that is too small.
        largest: The table that takes most of it.
        total: Bytes needed on all ranks together.
        copied: Bytes of data-parallel tables, which every rank holds however many ranks there are.
    """
    ranks, table_optimizer = request.topology.ranks, request.table_optimizer
    room = request.room if memory == "device" else request.host_room or 0
    ways = ["Use smaller embeddings: a lower model.base_dim."]
    if ranks > 1 and request.sharding_type_of(largest) not in ("auto", "row_wise"):  # `auto` has tried it
        ways.append(
            f"Spread table {largest.field!r} over all ranks: sharding.sharding_types = "
            f'{{ {largest.field} = "row_wise" }}.'
        )
    if copied < room or not copied:
        enough = max(-(-(total - ranks * copied) // max(1, room - copied)), ranks + 1)
        more = "Use more ranks" if memory == "device" else "Use more hosts, with more ranks in total"
        ways.append(f"{more}: {enough:,} or more, if the tables spread evenly.")
    kept = sum(not of_row for of_row in table_optimizer.states.values()) + (table_optimizer.fused is None)
    if kept:
        gradient = "gradient and optimizer state" if table_optimizer.fused is None else "optimizer state"
        ways.append(
            'Use a table optimizer with less state: optimizer.tables = "rowwise_adagrad" stores 1 number per '
            f'row; "{table_optimizer.name}" stores {kept} per weight ({gradient}).'
        )
    if table_optimizer.fused is not None and largest.precision == "float32":
        ways.append('Store tables with half the bytes: precision.tables = "float16".')
    if memory == "host":
        ways += _move_to_device(request, largest)
    elif request.topology.device == "cuda":
        ways += [
            *_move_to_host(request, largest),
            'Run on CPU processes, whose tables are in host memory: ranks.device = "cpu".',
        ]
    return "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, start=1))


def _move_to_host(request: PlanRequest, largest: Table) -> list[str]:
    """Returns how to use host memory so that the largest table takes less of the device."""
    kernel = request.memory_of(largest).kernel
    if kernel == "fused_uvm_caching":
        return [
            "Use a smaller cache: a lower sharding.cache_load_factor, or no cache: "
            f'sharding.compute_kernels = {{ {largest.field} = "fused_uvm" }}.'
        ]
    if kernel == "fused_uvm":
        state_on_device = any(request.table_optimizer.states.values())
        return (
            [
                'Store the optimizer state in host memory too: optimizer.tables = "adagrad" '
                "(state with 1 number per row stays on the GPU)."
            ]
            if state_on_device
            else []
        )
    changes = [] if request.table_optimizer.fused is not None else ['optimizer.tables = "rowwise_adagrad"']
    if request.sharding_type_of(largest) == "data_parallel":
        changes.append(f'sharding.sharding_types = {{ {largest.field} = "table_wise" }}')
    moved = f"Store table {largest.field!r} in host memory, with a cache on the GPU"
    if largest.precision == "bfloat16":  # has no cache, so `auto` leaves it on the device
        changes.append(f'sharding.compute_kernels = {{ {largest.field} = "fused_uvm" }}')
        moved = f"Store table {largest.field!r} in host memory"
    elif largest.field in request.user_settings.compute_kernels:
        changes.append(f'sharding.compute_kernels = {{ {largest.field} = "fused_uvm_caching" }}')
    else:
        changes.append('sharding.compute_kernel = "auto"')
        moved = "Store the largest tables in host memory, with a cache on the GPU"
    return [f"{moved}: {' and '.join(changes)}."]


def _move_to_device(request: PlanRequest, largest: Table) -> list[str]:
    """Returns how to store the largest table on the device; nothing if `auto` found no room for it there."""
    asked = request.user_settings
    if largest.field not in asked.compute_kernels and asked.compute_kernel == "auto":
        return []
    or_auto = (
        ""
        if asked.compute_kernel == "auto" or largest.field in asked.compute_kernels
        else ', or sharding.compute_kernel = "auto"'
    )
    return [
        f"Store table {largest.field!r} on the device: sharding.compute_kernels = "
        f'{{ {largest.field} = "device" }}{or_auto}.'
    ]
