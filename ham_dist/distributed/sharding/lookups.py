"""What TorchRec looks tables up by: how the gradients of several ranks are put together, and caches of tables in host memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.comm_ops import get_gradient_division, set_gradient_division
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel

from ham_dist.distributed.internals import lookups_of
from ham_dist.distributed.ranks import process_group


class Caches:
    """GPU caches of tables that lie in host memory. After a lookup they, and not the tables, have the last word on their rows."""

    def __init__(self, parallel: DistributedModelParallel) -> None:
        self._parallel = parallel
        self._are_ahead = False
        parallel.module.register_forward_pre_hook(self._note_lookup)

    def empty(self) -> None:
        """Write cached rows back to their tables and forget them: lookups would not see what is written to the tables otherwise.

        Not between a lookup and its backward pass, which moves rows where the lookup found them.
        """
        if not self._are_ahead:
            return
        for lookup in _lookups(self._parallel):
            lookup.flush()
            lookup.purge()
        self._are_ahead = False

    def _note_lookup(self, *_: Any) -> None:
        self._are_ahead = True


@contextmanager
def summed_gradients() -> Iterator[None]:
    """Inside, forward and backward passes sum the gradients of sharded tables over the ranks, where TorchRec takes the mean.

    The loss of a rank is its share of the loss of the global batch, so the gradient is the sum. Scaled up for the mean to
    scale it down again, it would be rounded twice, and differ with the number of ranks. TorchRec's switch is one for the
    whole process: it is set back afterwards, so that other TorchRec models in the process keep their mean.
    """
    before = get_gradient_division()
    set_gradient_division(False)
    try:
        yield
    finally:
        set_gradient_division(before)


def sum_gradients(parallel: DistributedModelParallel) -> None:
    """Makes DDP sum the gradients of dense weights and of data-parallel tables over the ranks; see `summed_gradients` for the other tables."""
    for module in parallel.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, _sum_of_bucket)
    for lookup in _wrapped_lookups(parallel):
        if isinstance(lookup, DistributedDataParallel):
            lookup.register_comm_hook(None, _sum_of_bucket)
            lookup.broadcast_buffers = False  # Constants of the kernel, which would be sent at every lookup.


def _wrapped_lookups(parallel: nn.Module) -> Iterator[nn.Module]:
    """What looks the tables up; that of data-parallel tables stands within a DDP of its own."""
    for module in parallel.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield from lookups_of(module)


def _lookups(parallel: nn.Module) -> Iterator[Any]:
    """The same without DDP: TorchRec's modules with `flush` and `purge`."""
    for lookup in _wrapped_lookups(parallel):
        yield lookup.module if isinstance(lookup, DistributedDataParallel) else lookup


def _sum_of_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return process_group.starting_sum(bucket.buffer())
