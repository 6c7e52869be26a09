"""Every private name of torch, TorchRec and FBGEMM that the package relies on.

tests/distributed/test_internals.py holds one test for each, which fails by its name when a new version changes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import (
    Shard,
    ShardedTensor,
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.optim import _apply_optimizer_in_backward

__all__ = [
    "HOST_MAPPED",
    "EnumerableShardingSpec",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "StorageInfo",
    "TensorProperties",
    "apply_optimizer_in_backward",
    "default_store",
    "lookups_of",
    "plan_with_optimizer",
    "sharded_tensor",
]

HOST_MAPPED: Mapping[str, bool] = {"uvm_host_mapped": True}
"""FBGEMM's argument by which tables in host memory lie in mapped memory, not in managed memory."""


def sharded_tensor(shards: Sequence[Shard], metadata: ShardedTensorMetadata) -> ShardedTensor:
    """The whole tensor that `metadata` describes, without asking the other ranks.

    Args:
        shards: This rank's.
    """
    return ShardedTensor._init_from_local_shards_and_global_metadata(list(shards), metadata)


def default_store() -> dist.Store:
    """The store through which the ranks of this process group met."""
    return _get_default_store()


def apply_optimizer_in_backward(
    optimizer: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], options: Mapping[str, Any]
) -> None:
    """Has the fused kernels of `parameters`, once sharded, step by `optimizer` inside the backward pass."""
    _apply_optimizer_in_backward(optimizer, parameters, dict(options))


def plan_with_optimizer(parameter: nn.Parameter, optimizer: type[torch.optim.Optimizer]) -> None:
    """Has TorchRec's planner count the state of `optimizer` for `parameter`."""
    parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]


def lookups_of(collection: Any) -> list[nn.Module]:
    """The lookups of a ShardedEmbeddingBagCollection: in a plain list, which modules() does not look into."""
    return list(collection._lookups)
