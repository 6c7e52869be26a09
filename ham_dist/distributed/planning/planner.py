"""Decides which rank holds which shard of which table, from sizes alone, before tables are allocated."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches

from ham_dist.config.sharding import ShardingSettings
from ham_dist.distributed.planning.by_size import plan_by_size
from ham_dist.distributed.planning.by_torchrec import plan_by_torchrec
from ham_dist.distributed.planning.errors import require_possible, too_much_for_device, too_much_for_host
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import BytesHeld, TableOptimizer
from ham_dist.errors import ConfigError, ShardingError


def make_plan(request: PlanRequest) -> Plan:
    """Returns the plan for `request`; equal requests give equal plans, on every rank.

    Raises:
        ShardingError: A sharding type cannot be used for a table, or tables do not fit; lists what to change.
        BackendError: The table optimizer or a compute kernel does not exist on the device.
    """
    for table in request.tables:
        request.table_optimizer.require(request.topology.device, table.precision)
        require_possible(request, table)
    if movable := request.movable():
        return _plan_with_few_cached(request, movable)
    if request.topology.device == "cuda" and any(
        request.sharding_type_of(table) == "auto" for table in request.tables
    ):
        plan = plan_by_torchrec(request)
    else:
        plan = plan_by_size(request)
    _require_room(request, plan)
    return plan


def _plan_with_few_cached(request: PlanRequest, movable: Sequence[str]) -> Plan:
    """Returns a plan with as few as possible of the tables `movable` cached, found by binary search."""

    def attempt(count: int, request: PlanRequest) -> Plan:
        kernels = {
            field: "fused_uvm_caching" if number < count else "device" for number, field in enumerate(movable)
        }
        settings = request.settings.model_copy(
            update={"compute_kernel": "device", "compute_kernels": request.settings.compute_kernels | kernels}
        )
        return make_plan(replace(request, settings=settings, asked=request.user_settings))

    def fits_on_devices(count: int) -> bool:
        try:
            attempt(count, replace(request, topology=replace(request.topology, host_memory=None)))
        except ShardingError:
            return False
        return True

    # More cached tables take less of the devices and more of the hosts: if the smallest number that fits the
    # devices is too large for the hosts, so is every larger one.
    fewest = 0 if fits_on_devices(0) else bisect_left(range(len(movable)), True, lo=1, key=fits_on_devices)
    return attempt(fewest, request)


def _require_room(request: PlanRequest, plan: Plan) -> None:
    held = request.held(plan)
    ranks = range(request.topology.ranks)
    fullest = max(ranks, key=lambda rank: held[rank].device)
    host_fullest = max(ranks, key=lambda rank: held[rank].host)
    if held[fullest].device > request.room:
        raise too_much_for_device(request, plan, fullest)
    if request.host_room is not None and held[host_fullest].host > request.host_room:
        raise too_much_for_host(request, plan, host_fullest)


def require_known_fields(settings: ShardingSettings, fields: Iterable[str]) -> None:
    """Checks that sharding types and compute kernels are set only for fields of the data.

    Raises:
        ConfigError: The data has no such field; names the nearest one.
    """
    known = list(fields)
    wrong = [
        (key, field)
        for key in ("sharding_types", "compute_kernels")
        for field in getattr(settings, key)
        if field not in known
    ]
    if wrong:
        nearest = {field: get_close_matches(field, known, n=1) for _, field in wrong}
        raise ConfigError(
            "\n".join(
                f"sharding.{key}.{field}: the data has no such field."
                + (
                    f" Did you mean {nearest[field][0]}?"
                    if nearest[field]
                    else f" Use one of its fields: {', '.join(known)}."
                )
                for key, field in wrong
            )
        )


def bytes_held(plan: Plan, table_optimizer: TableOptimizer, ranks: int) -> list[BytesHeld]:
    """Returns the bytes of a trained model's tables and optimizer state on each rank.

    Gradients are not counted: they are freed before the next model is allocated.
    """
    held = [BytesHeld(0, 0, 0)] * ranks
    for placement in plan.placements:
        for shard in placement.shards:
            of_shard = table_optimizer.bytes_of(
                shard.rows,
                shard.rows * shard.columns,
                fused=True,
                number_bytes=placement.table.number_bytes,
                memory=placement.memory,
            )
            held[shard.rank] = held[shard.rank].plus(of_shard)
    return held
