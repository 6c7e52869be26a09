"""All private APIs of torch, TorchRec and FBGEMM that the package uses.

tests/distributed/test_internals.py has one test for each, which fails if a new version changes it.
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
"""FBGEMM's option to use mapped instead of managed memory for tables in host memory."""


def sharded_tensor(shards: Sequence[Shard], metadata: ShardedTensorMetadata) -> ShardedTensor:
    """Returns the sharded tensor that `metadata` describes, without a collective.

    Args:
        shards: This rank's shards.
        metadata: The metadata of the whole tensor.
    """
    return ShardedTensor._init_from_local_shards_and_global_metadata(list(shards), metadata)


def default_store() -> dist.Store:
    """Returns the store that the ranks of the process group used for their rendezvous."""
    return _get_default_store()


def apply_optimizer_in_backward(
    optimizer: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], options: Mapping[str, Any]
) -> None:
    """Makes fused kernels update `parameters`, once sharded, with `optimizer` in the backward pass."""
    _apply_optimizer_in_backward(optimizer, parameters, dict(options))


def plan_with_optimizer(parameter: nn.Parameter, optimizer: type[torch.optim.Optimizer]) -> None:
    """Makes TorchRec's planner count the state of `optimizer` for `parameter`."""
    parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]


def lookups_of(collection: Any) -> list[nn.Module]:
    """Returns the lookups of a ShardedEmbeddingBagCollection, a plain list that modules() does not visit."""
    return list(collection._lookups)
