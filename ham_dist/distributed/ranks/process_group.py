"""The process group of this run, and the collectives that other packages use.

Without a process group, each function behaves as on one rank.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ham_dist import errors
from ham_dist.config.schema import RanksSettings
from ham_dist.distributed.ranks.device import device_of_rank, require_one_device
from ham_dist.distributed.ranks.peer_failure import lost_peer, lost_rank_error, note_failure
from ham_dist.distributed.ranks.rendezvous import fresh_store
from ham_dist.errors import HamError

T = TypeVar("T")


def launched() -> bool:
    """Returns True if torchrun or torchx started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(settings: RanksSettings | None = None) -> Iterator[torch.device]:
    """Joins the ranks that torchrun started, or creates a group of one rank.

    Uses NCCL on GPUs and gloo on CPU. The group is destroyed at the end, also after an error. A group that
    already exists is used unchanged, and kept.

    Args:
        settings: The section `[ranks]`; None uses the defaults.
    Yields:
        This rank's device.
    Raises:
        BackendError: This host does not have the devices of `settings.device`.
        LostRankError: Another rank has ended or does not respond; names the rank.
    """
    settings = settings or RanksSettings()
    device = device_of_rank(settings.device)
    _hide_startup_warnings()
    if dist.is_initialized():
        yield device
        return
    if "OMP_NUM_THREADS" not in os.environ:
        # If each rank starts as many threads as the host has cores, all ranks become ten times slower.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=settings.timeout_minutes)
    if launched():
        store, rank, ranks = next(rendezvous("env://", timeout=timeout))
        store = fresh_store(store, rank, ranks, timeout)
        require_one_device(store, rank, device)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=ranks,
            timeout=timeout,
        )
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield device
    except Exception as error:
        if lost_peer(error):
            raise lost_rank_error(timeout) from error
        note_failure(error)
        raise
    finally:
        dist.destroy_process_group()


def _hide_startup_warnings() -> None:
    """Hides warnings of torch and TorchRec at every start that the user cannot act on."""
    # TorchRec's DistributedModelParallel passes an argument to DDP that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # fbgemm registers the gradient of its dense lookup in a way that torch does not recognize. Tests compare
    # this gradient with plain torch.
    warnings.filterwarnings(
        "ignore",
        message="fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered",
    )
    # TorchRec's collectives for row-sharded tables use names that torch 2.13 deprecates.
    warnings.filterwarnings(
        "ignore",
        message=r"`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
        category=FutureWarning,
    )
    # torchrec 1.6 requests the only device of a group from torch 2.11, but a group may have several devices.
    warnings.filterwarnings(
        "ignore",
        message="`_get_pg_default_device` will be deprecated"
        "|Multiple backends are registered with this ProcessGroup",
    )
    # TorchRec checks for tracing with a function that torch renames.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # TorchRec warns for each table with a dense kernel that caching does not apply to it, although none is
    # set.
    logging.getLogger("torchrec.distributed.utils").setLevel(logging.ERROR)


def rank() -> int:
    """Returns the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns W, the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_of_host() -> int:
    """Returns the number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else world_size()


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Returns the `value` of every rank, in the order of the ranks. A collective for small values.

    Args:
        value: This rank's value.
        group: Another process group of all ranks, for a thread that runs during training.
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values  # type: ignore[return-value]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Returns `values`, summed over all ranks in place; the same on every rank. A collective."""
    if world_size() > 1:
        if _is_small(values):
            sent, received = _copies(values)
            dist.all_to_all_single(received, sent)
            _add_up(values, received)
        else:
            whole = values.contiguous()  # gloo ignores strides and would sum the underlying memory
            dist.all_reduce(whole)
            if whole is not values:
                values.copy_(whole)
    return values


def starting_sum(values: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Starts sum_over_ranks() of a contiguous tensor; the future's result is `values`."""
    assert values.is_contiguous()
    if world_size() == 1:
        finished: torch.futures.Future[torch.Tensor] = torch.futures.Future(
            devices=[values.device] if values.is_cuda else None
        )
        finished.set_result(values)
        return finished
    if not _is_small(values):
        return dist.all_reduce(values, async_op=True).get_future().then(lambda done: done.value()[0])
    sent, received = _copies(values)
    work = dist.all_to_all_single(received, sent, async_op=True)

    def add_up(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        done.value()  # raises the error of the collective
        return _add_up(values, received)

    return work.get_future().then(add_up)


SMALL_BYTES = 1 << 20
"""Largest number of bytes that a rank sends for a sum in one all-to-all."""


def _is_small(values: torch.Tensor) -> bool:
    # gloo's all-reduce takes several rounds, and waits for a thread to wake up in each: 1.5 ms on 2 ranks of
    # one host, 6 ms on 4. An all-to-all of copies takes one round: 0.3 and 2.5 ms.
    return values.device.type == "cpu" and values.nbytes * world_size() <= SMALL_BYTES


def _copies(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a copy of `values` for each rank, and an empty tensor for those received from each rank."""
    sent = values.detach().flatten().repeat(world_size())
    return sent, torch.empty_like(sent)


def _add_up(values: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
    """Writes the sum to `values`, added in the order of the ranks, so that all ranks have the same bits."""
    total, *others = received.view(world_size(), -1)
    for one in others:
        total += one
    return values.copy_(total.view_as(values))


def sum_numbers(*numbers: float) -> tuple[float, ...]:
    """Returns each of `numbers` summed over all ranks in float64. A collective.

    Uses the CPU backend, also in runs on GPUs.
    """
    if world_size() == 1:
        return numbers
    sums: list[float] = sum_over_ranks(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return tuple(sums)


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Returns the result of `work` on this rank, or raises an error on all ranks if it fails on any.

    Otherwise the other ranks would wait for the failed rank in their next collective.

    Args:
        work: A function without collectives.
        group: As for `gather_objects`.
    Raises:
        Exception: The rank's own error, or the error of the first rank that failed. Errors of ham_dist and of
            the operating system have the same class on all ranks, so that all ranks handle them alike.
    """
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = gather_objects(
        None if failure is None else (type(failure).__name__, str(failure), _system_error(failure)),
        group,
    )
    if failure is not None:
        raise failure
    for number, failed in enumerate(failures):
        if failed is not None:
            raise _error_of_rank(number, *failed)
    return result  # type: ignore[return-value]


def _system_error(error: Exception) -> int | None:
    """The errno of an OSError, 0 if it has none (as Arrow's errors); None for other errors."""
    return (error.errno or 0) if isinstance(error, OSError) else None


def _error_of_rank(number: int, name: str, message: str, code: int | None) -> Exception:
    error_class = getattr(errors, name, None)
    if isinstance(error_class, type) and issubclass(error_class, HamError):
        return error_class(f"rank {number}: {message}")
    if code is not None:
        return OSError(code, f"rank {number}: {message}") if code else OSError(f"rank {number}: {message}")
    return RuntimeError(f"rank {number}: {name}: {message}")


def on_first_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Returns on all ranks the (small, picklable) result of `work` on rank 0; fails as `together`."""
    return gather_objects(together(lambda: work() if rank() == 0 else None, group), group)[0]  # type: ignore[return-value]
