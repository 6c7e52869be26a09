"""Which rank holds which table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.embedding.tables import BYTES_PER_NUMBER, Table


def spread_tables(groups: Mapping[str, Sequence[Table]], ranks: int) -> dict[str, dict[str, int]]:
    """The rank of each table, by group and field: largest first, each to the rank with the fewest numbers so far (ties to the lower rank)."""
    load = [0] * ranks
    owners: dict[str, dict[str, int]] = {path: {} for path in groups}
    placed = [(table.rows * table.stored_width, path, table.field) for path, tables in groups.items() for table in tables]
    for numbers, path, field in sorted(placed, key=lambda entry: (-entry[0], entry[1:])):
        owners[path][field] = rank = load.index(min(load))
        load[rank] += numbers
    return owners


def sharding_plan(
    bags: Mapping[str, EmbeddingBagCollection],
    owners: Mapping[str, Mapping[str, int]],
    *,
    fused: bool,
    device: torch.device,
    ranks: int,
    ranks_of_host: int,
) -> ShardingPlan:
    """TorchRec's plan for `bags`, by module path, with each table whole on its owner.

    ranks_of_host: how many of the ranks share this machine, which decides on which of its devices a table of each rank lies.
    fused: whether the tables step inside the backward pass. TorchRec's planner refuses the dense kernel outside
    data-parallel, so the plan is written by hand.
    """
    kernel = EmbeddingComputeKernel.FUSED if fused else EmbeddingComputeKernel.DENSE
    sharder: Any = EmbeddingBagCollectionSharder()
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, ebc in bags.items():
        per_table = {config.name: table_wise(rank=owners[path][config.name], compute_kernel=kernel.value) for config in ebc.embedding_bag_configs()}
        plan[path] = construct_module_sharding_plan(
            ebc, per_table, sharder=sharder, world_size=ranks, local_size=ranks_of_host, device_type=device.type
        )
    return ShardingPlan(plan)


def describe(tables: Iterable[Table], owner: Mapping[str, int], *, fused: bool) -> list[dict[str, Any]]:
    """The plan as plain data, for the run folder's plan.json."""
    return [
        {
            "table": table.field,
            "kind": "table_wise",
            "kernel": "fused" if fused else "dense",
            "rank": owner[table.field],
            "rows": table.rows,
            "stored_width": table.stored_width,
            "bytes": table.rows * table.stored_width * BYTES_PER_NUMBER,
        }
        for table in tables
    ]
