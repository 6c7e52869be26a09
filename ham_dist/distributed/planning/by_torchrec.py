"""Plans by TorchRec's EmbeddingShardingPlanner, which estimates the fastest sharding types on GPUs that
fit."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ParameterSharding

from ham_dist.config.sharding import ShardingType
from ham_dist.config.units import size_text
from ham_dist.distributed.internals import plan_with_optimizer
from ham_dist.distributed.planning.errors import ShortMemory, ways_out
from ham_dist.distributed.planning.placement import (
    FUSED_KERNEL,
    TORCHREC_SHARDING_TYPE,
    Placement,
    Plan,
    TableShard,
    cache_params,
)
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import TableOptimizer
from ham_dist.embedding.tables import BYTES_PER_NUMBER, KERNEL_DIM, Table, embedding_bags
from ham_dist.errors import ShardingError

UNBOUNDED = 1 << 60
"""Bytes of host memory if its size is unknown."""

SHARDING_TYPE = {torchrec.value: name for name, torchrec in TORCHREC_SHARDING_TYPE.items()}


def plan_by_torchrec(request: PlanRequest) -> Plan:
    """Returns TorchRec's plan for `request`; tables with a sharding type in the settings keep it.

    Raises:
        ShardingError: TorchRec finds no plan; lists what to change.
    """
    topology, table_optimizer = request.topology, request.table_optimizer
    tables = {path: list(group) for path, group in request.groups.items()}
    model = nn.ModuleDict({_name(path): embedding_bags(group) for path, group in tables.items()})
    optimizer = table_optimizer.fused[0] if table_optimizer.fused is not None else torch.optim.Adam
    for parameter in model.parameters():
        plan_with_optimizer(parameter, optimizer)
    memory = max(
        0,
        int(topology.memory * request.settings.memory_share)
        - max(held.device for held in request.taken_by_rank),
    )
    counted = _counted_share(table_optimizer, next(iter(tables.values()))[0])
    host = (
        UNBOUNDED
        if request.host_room is None
        else max(0, int((request.host_room - max(held.host for held in request.taken_by_rank)) * counted))
    )
    sharder: Any = EmbeddingBagCollectionSharder()
    try:
        with _quiet():
            made = EmbeddingShardingPlanner(
                topology=Topology(
                    topology.ranks,
                    "cuda",
                    hbm_cap=int(memory * counted),
                    ddr_cap=host,
                    local_world_size=topology.ranks_of_host,
                ),
                batch_size=-(-request.batch_size // topology.ranks),
                storage_reservation=FixedPercentageStorageReservation(0.0),
                constraints={
                    table.module_name: _constraints(request, table)
                    for group in tables.values()
                    for table in group
                },
                stats=[],
                debug=False,
            )
            plan = made.plan(model, [sharder])
    except PlannerError as error:
        raise _no_place(request, request.tables) from error
    return Plan(
        {
            path: {
                table.field: _placement(request, table, plan.plan[_name(path)][table.module_name])
                for table in group
            }
            for path, group in tables.items()
        }
    )


def _no_place(request: PlanRequest, tables: Sequence[Table]) -> ShardingError:
    """Returns the error for tables that TorchRec's planner cannot place.

    The planner does not report which memory is too small. It is taken to be host memory if all tables
    together need more than all hosts have, otherwise device memory.
    """
    topology, held = request.topology, [request.bytes_of(table, "table_wise") for table in tables]
    device, host = sum(bytes_held.device for bytes_held in held), sum(bytes_held.host for bytes_held in held)
    short: ShortMemory = (
        "host" if request.host_room is not None and host > request.host_room * topology.ranks else "device"
    )
    largest = max(zip(tables, held, strict=True), key=lambda entry: getattr(entry[1], short))[0]
    return ShardingError(
        f"sharding: TorchRec's planner finds no plan that fits. The tables need {size_text(device)} on GPUs, "
        "with gradients and optimizer state"
        + (f", and {size_text(host)} in host memory" if host else "")
        + f".\nEach of the {topology.ranks} rank(s) has {size_text(topology.memory)}"
        + ("" if topology.host_memory is None else f" and {size_text(topology.host_memory)} of host memory")
        + f", of which tables may take {request.settings.memory_share:.0%} (sharding.memory_share). "
        "Ways to make them fit:\n" + ways_out(request, short, largest, device if short == "device" else host)
    )


def _counted_share(table_optimizer: TableOptimizer, table: Table) -> float:
    """Returns the planner's estimate of the bytes per number, divided by the real bytes.

    The planner takes optimizer state to have the tables' precision, and knows the dense kernel for
    data-parallel tables only, so fused kernels, without gradients, are requested for all others. To make up
    for it, the planner gets ranks whose memory is smaller by this factor.
    """
    states = sum(not of_row for of_row in table_optimizer.states.values())
    gradient = table.number_bytes if table_optimizer.fused is None else 0
    return (1 + states) * table.number_bytes / (table.number_bytes + states * BYTES_PER_NUMBER + gradient)


def _constraints(request: PlanRequest, table: Table) -> ParameterConstraints:
    sharding_type = request.sharding_type_of(table)
    rowless = {"column_wise", "grid"} if request.table_optimizer.whole_rows else set()
    memory = request.memory_of(table)
    has_copies = (
        request.table_optimizer.dense is not None
        and table.precision == "float32"
        and memory.kernel == "device"
    )
    copyless = set() if has_copies else {"data_parallel"}
    allowed: Iterable[ShardingType] = (
        [sharding_type]
        if sharding_type != "auto"
        else [candidate for candidate in TORCHREC_SHARDING_TYPE if candidate not in rowless | copyless]
    )
    return ParameterConstraints(
        sharding_types=[TORCHREC_SHARDING_TYPE[choice].value for choice in allowed],
        # Data-parallel tables have only the dense kernel; a fused kernel is requested for all others.
        compute_kernels=[FUSED_KERNEL[memory.kernel].value, EmbeddingComputeKernel.DENSE.value],
        min_partition=KERNEL_DIM,
        cache_params=cache_params(memory),
    )


def _placement(request: PlanRequest, table: Table, sharding: ParameterSharding) -> Placement:
    sharding_type = SHARDING_TYPE[sharding.sharding_type]
    if sharding_type == "data_parallel":
        shards = [
            TableShard(rank, 0, table.num_embeddings, 0, table.stored_dim)
            for rank in range(request.topology.ranks)
        ]
    else:
        shards = [
            TableShard(of_rank.placement.rank(), *_interleaved(of_rank.shard_offsets, of_rank.shard_sizes))
            for of_rank in sharding.sharding_spec.shards
        ]
    joined = _one_a_rank(shards) if sharding_type == "column_wise" else shards
    return Placement(
        table, sharding_type, request.is_fused(sharding_type), tuple(joined), request.memory_of(table)
    )


def _interleaved(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[int, int, int, int]:
    return offsets[0], sizes[0], offsets[1], sizes[1]


def _one_a_rank(shards: Sequence[TableShard]) -> list[TableShard]:
    """Returns column blocks reassigned so that each rank has neighbouring ones, joined to one shard.

    All blocks have the same number of columns and the same cost, so it does not matter which of them a rank
    holds.
    """
    blocks = sorted(shards, key=lambda shard: shard.first_column)
    ranks = sorted(shard.rank for shard in shards)
    owned = [(rank, block) for rank, block in zip(ranks, blocks, strict=True)]
    joined = []
    for rank, group in groupby(owned, key=lambda entry: entry[0]):
        of_rank = [block for _, block in group]
        joined.append(
            TableShard(
                rank, 0, of_rank[0].rows, of_rank[0].first_column, sum(block.columns for block in of_rank)
            )
        )
    return joined


def _name(path: str) -> str:
    return path.replace(".", "-")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the planner's warnings.

    It warns about each table that it could place in only one way, which is what a sharding type in the
    settings requires, and about a topology that was not created by its own factory, which TorchRec 1.6 does
    not have.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
