"""The ranks of this run: joining them, and the few exchanges that other rooms need. Without a process group each function acts as on one rank."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ham_dist.errors import HamError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others. Rank 0 alone hashes a bundle, at about a second a gigabyte; a rank that ends is noticed at once."""


def launched() -> bool:
    """Whether torchrun (or torchx) started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the ranks that torchrun started, or be the only one; gives this rank's device.

    NCCL where every rank has a GPU, gloo elsewhere. The group is left on the way out, whatever happened inside; a group that the caller has joined
    already is used as it is and stays.
    """
    device = _device()
    _quiet()
    if dist.is_initialized():
        yield device
        return
    if "OMP_NUM_THREADS" not in os.environ:
        # Ranks that each start as many threads as the machine has cores slow one another down to a tenth.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if launched():
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _quiet() -> None:
    """Keep back what torch and TorchRec say on every start, that a user of ours can do nothing about."""
    # DDP on behalf of TorchRec's DistributedModelParallel, which passes an argument that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # fbgemm registers the gradient of its dense lookup in a way that torch does not recognize; tests hold it against plain torch.
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered")
    # torchrec 1.6 asks torch 2.11 for a group's only device, of which there may be several.
    warnings.filterwarnings("ignore", message="`_get_pg_default_device` will be deprecated|Multiple backends are registered with this ProcessGroup")
    # TorchRec asks whether it is being traced by a function that torch is renaming.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # A warning for each table that caching does not apply to the dense kernel; nobody here asked for caching.
    logging.getLogger("torchrec.distributed.utils").setLevel(logging.ERROR)


def _device() -> torch.device:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """W, the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_of_host() -> int:
    """How many of the ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else world_size()


def gather_objects(value: T) -> list[T]:
    """The `value` of every rank, by rank, on every rank. For small things: it pickles."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """`values` summed over all ranks, in place; the same on every rank."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def together(work: Callable[[], T]) -> T:
    """Do `work` on this rank; if it failed on any rank, fail on all with the first failing rank's message.

    Without this a rank that fails leaves the others waiting in their next collective. `work` itself must hold no collective.
    """
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = gather_objects(None if failure is None else (type(failure).__name__, str(failure), isinstance(failure, HamError)))
    if failure is not None:
        raise failure
    for number, failed in enumerate(failures):
        if failed is not None:
            name, message, is_ours = failed
            raise HamError(f"rank {number}: {message}") if is_ours else RuntimeError(f"rank {number}: {name}: {message}")
    return result  # type: ignore[return-value]


def on_first_rank(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and give its (small, picklable) result to all; if it failed, fail on all."""
    return gather_objects(together(lambda: work() if rank() == 0 else None))[0]  # type: ignore[return-value]
