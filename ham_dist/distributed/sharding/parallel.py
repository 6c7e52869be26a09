"""Wraps a model in TorchRec's DistributedModelParallel: sharded tables, and all other weights replicated."""

from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from ham_dist.distributed.internals import HOST_MAPPED, apply_optimizer_in_backward
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.table_optimizers import TableOptimizer
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.id_prefetch import PrefetchingSharder
from ham_dist.distributed.sharding.lookups import sum_gradients, summed_gradients


def parallelize(
    model: nn.Module, plan: Plan, device: torch.device, table_optimizer: TableOptimizer, learning_rate: float
) -> DistributedModelParallel:
    """Returns `model` in DistributedModelParallel; gradients are summed over the ranks.

    Args:
        model: The model; its tables have no memory yet.
        plan: Placement of each table.
        device: Device of this rank.
        table_optimizer: Optimizer of the tables.
        learning_rate: Learning rate of the tables, where the kernels apply it inside the backward pass.
    """
    shardings: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, group in plan.groups.items():
        bags: Any = model.get_submodule(path).embedding_bags
        if table_optimizer.fused is not None:
            kind, options = table_optimizer.fused
            trained = [
                bags[placement.table.module_name].weight for placement in group.values() if placement.fused
            ]
            apply_optimizer_in_backward(kind, trained, {"lr": learning_rate, **options})
        shardings[path] = EmbeddingModuleShardingPlan(
            {
                placement.table.module_name: placement.sharding(device, process_group.ranks_of_host())
                for placement in group.values()
            }
        )
    # By default fbgemm puts tables on the host into managed memory, which can hang a GPU when it runs out of
    # memory.
    sharder = PrefetchingSharder(fused_params=dict(HOST_MAPPED) if plan.uses_host_memory else None)
    with summed_gradients():
        parallel = DistributedModelParallel(
            model, device=device, plan=ShardingPlan(shardings), sharders=[sharder]
        )
    sum_gradients(parallel)
    return parallel
