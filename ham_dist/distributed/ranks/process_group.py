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
from torch.distributed.rendezvous import rendezvous

from ham_dist import errors
from ham_dist.config.schema import RanksSettings
from ham_dist.distributed.ranks.device import device_of_rank, require_one_device
from ham_dist.distributed.ranks.peer_failure import lost_peer, note_failure, roll_call
from ham_dist.distributed.ranks.rendezvous import fresh_store
from ham_dist.errors import HamError

T = TypeVar("T")


def launched() -> bool:
    """Whether torchrun (or torchx) started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(settings: RanksSettings | None = None) -> Iterator[torch.device]:
    """Join the ranks that torchrun started, or be the only one; gives this rank's device.

    NCCL on GPUs, gloo on CPU. The group is left on the way out, whatever happened inside; a group that the caller has joined
    already is used as it is and stays.

    settings: None takes the defaults.
    raises:   BackendError if this rank has no device as `settings.device` wants it; LostRankError, with the number of the rank, if another one
              ended or hangs.
    """
    settings = settings or RanksSettings()
    device = device_of_rank(settings.device)
    _quiet()
    if dist.is_initialized():
        yield device
        return
    if "OMP_NUM_THREADS" not in os.environ:
        # Ranks that each start as many threads as the machine has cores slow one another down to a tenth.
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
            raise roll_call(timeout) from error
        note_failure(error)
        raise
    finally:
        dist.destroy_process_group()


def _quiet() -> None:
    """Keep back what torch and TorchRec say on every start, that a user of ours can do nothing about."""
    # DDP on behalf of TorchRec's DistributedModelParallel, which passes an argument that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # fbgemm registers the gradient of its dense lookup in a way that torch does not recognize; tests hold it against plain torch.
    warnings.filterwarnings(
        "ignore",
        message="fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered",
    )
    # TorchRec's collectives of tables whose rows are spread, under names that torch 2.13 is to drop.
    warnings.filterwarnings(
        "ignore",
        message=r"`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
        category=FutureWarning,
    )
    # torchrec 1.6 asks torch 2.11 for a group's only device, of which there may be several.
    warnings.filterwarnings(
        "ignore",
        message="`_get_pg_default_device` will be deprecated|Multiple backends are registered with this ProcessGroup",
    )
    # TorchRec asks whether it is being traced by a function that torch is renaming.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # A warning for each table that caching does not apply to the dense kernel; nobody here asked for caching.
    logging.getLogger("torchrec.distributed.utils").setLevel(logging.ERROR)


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """W, the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_of_host() -> int:
    """How many of the ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else world_size()


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The `value` of every rank, by rank, on every rank. For small things: it pickles.

    group: another process group of all ranks, for a thread beside the one that trains.
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values  # type: ignore[return-value]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """`values` summed over all ranks, in place; the same on every rank."""
    if world_size() > 1:
        if _is_small(values):
            sent, received = _copies(values)
            dist.all_to_all_single(received, sent)
            _add_up(values, received)
        else:
            whole = values.contiguous()  # of a tensor with gaps, gloo would add up the memory as it lies
            dist.all_reduce(whole)
            if whole is not values:
                values.copy_(whole)
    return values


def starting_sum(values: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """The same of a tensor without gaps, and without waiting: what comes of it is `values`."""
    assert values.is_contiguous()
    if world_size() == 1:
        at_once: torch.futures.Future[torch.Tensor] = torch.futures.Future(
            devices=[values.device] if values.is_cuda else None
        )
        at_once.set_result(values)
        return at_once
    if not _is_small(values):
        return dist.all_reduce(values, async_op=True).get_future().then(lambda done: done.value()[0])
    sent, received = _copies(values)
    work = dist.all_to_all_single(received, sent, async_op=True)

    def add_up(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        done.value()  # raises what the exchange failed with
        return _add_up(values, received)

    return work.get_future().then(add_up)


SMALL_BYTES = 1 << 20
"""Most that a rank sends for a sum in one round."""


def _is_small(values: torch.Tensor) -> bool:
    # gloo's all-reduce goes around in rounds, and in each waits for a thread to wake up: 1.5 ms on 2 ranks of one machine, 6 ms on 4. Everything to
    # everyone is one round: 0.3 and 2.5 ms.
    return values.device.type == "cpu" and values.nbytes * world_size() <= SMALL_BYTES


def _copies(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` once for each rank, and room for those of each."""
    sent = values.detach().flatten().repeat(world_size())
    return sent, torch.empty_like(sent)


def _add_up(values: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
    """The sum in `values`: the same bits on every rank, which all add in the order of the ranks."""
    total, *others = received.view(world_size(), -1)
    for one in others:
        total += one
    return values.copy_(total.view_as(values))


def sum_numbers(*numbers: float) -> tuple[float, ...]:
    """Each of `numbers` summed over all ranks in float64; the same on every rank. Over the CPU's backend, also where there are GPUs."""
    if world_size() == 1:
        return numbers
    sums: list[float] = sum_over_ranks(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return tuple(sums)


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do `work` on this rank; if it failed on any rank, fail on all with the first failing rank's message.

    Without this a rank that fails leaves the others waiting in their next collective. `work` itself must hold no collective. An error of ham_dist, or
    of the operating system, is of the same class on all ranks, so that all that catch it do so together.

    group: as for `gather_objects`.
    """
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = gather_objects(
        None if failure is None else (type(failure).__name__, str(failure), getattr(failure, "errno", None)),
        group,
    )
    if failure is not None:
        raise failure
    for number, failed in enumerate(failures):
        if failed is not None:
            raise _error_of_rank(number, *failed)
    return result  # type: ignore[return-value]


def _error_of_rank(number: int, name: str, message: str, code: int | None) -> Exception:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, HamError):
        return kind(f"rank {number}: {message}")
    if code is not None:
        return OSError(code, f"rank {number}: {message}")
    return RuntimeError(f"rank {number}: {name}: {message}")


def on_first_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do `work` on rank 0 alone and give its (small, picklable) result to all; if it failed, fail on all."""
    return gather_objects(together(lambda: work() if rank() == 0 else None, group), group)[0]  # type: ignore[return-value]
