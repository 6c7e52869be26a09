"""TorchRec's lookup modules: sums of gradients over ranks, and GPU caches of tables in host memory."""

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
    """GPU caches of tables in host memory. After a lookup, cached rows are newer than those in the tables."""

    def __init__(self, parallel: DistributedModelParallel) -> None:
        self._parallel = parallel
        self._are_ahead = False
        parallel.module.register_forward_pre_hook(self._note_lookup)

    def empty(self) -> None:
        """Writes cached rows back to their tables and clears the caches.

        Without it, lookups would not see what is written to the tables. Not allowed between a lookup and its
        backward pass, which updates the rows where the lookup found them.
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
    """Context in which gradients of sharded tables are summed over the ranks, where TorchRec takes the mean.

    The loss of a rank is its share of the global batch's loss, so the gradient is the sum. Scaling it up for
    the mean to scale it down again would round twice, and the result would depend on the number of ranks.
    TorchRec's switch is global to the process; it is reset afterwards, so that other TorchRec models in the
    process keep their mean.
    """
    before = get_gradient_division()
    set_gradient_division(False)
    try:
        yield
    finally:
        set_gradient_division(before)


def sum_gradients(parallel: DistributedModelParallel) -> None:
    """Makes DDP sum the gradients of dense weights and data-parallel tables over the ranks.

    For all other tables see `summed_gradients`.
    """
    for module in parallel.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, _sum_of_bucket)
    for lookup in _wrapped_lookups(parallel):
        if isinstance(lookup, DistributedDataParallel):
            lookup.register_comm_hook(None, _sum_of_bucket)
            # The buffers are constants; DDP would send them at every lookup.
            lookup.broadcast_buffers = False


def _wrapped_lookups(parallel: nn.Module) -> Iterator[nn.Module]:
    """Yields TorchRec's lookup modules; those of data-parallel tables are wrapped in their own DDP."""
    for module in parallel.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield from lookups_of(module)


def _lookups(parallel: nn.Module) -> Iterator[Any]:
    """Yields TorchRec's lookup modules without DDP; they have `flush` and `purge`."""
    for lookup in _wrapped_lookups(parallel):
        yield lookup.module if isinstance(lookup, DistributedDataParallel) else lookup


def _sum_of_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return process_group.starting_sum(bucket.buffer())
