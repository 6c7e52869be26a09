"""Runs a function on several gloo ranks, which stay alive between tests."""

import atexit
import faulthandler
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from tests.support.forked import forking

T = TypeVar("T")

_pools: dict[int, "_Pool"] = {}


def run_on_ranks(world_size: int, function: Callable[..., T], *args: Any, timeout: float = 600) -> list[T]:
    """Calls `function(*args)` on the ranks of a gloo process group, and returns their results, by rank.

    Args:
        function: At the top level of a module, so that the ranks can import it; torch's seed is 0 when it
        starts. *args: Picklable, like the function's result.
        timeout: Seconds until the ranks are given up.
    Raises:
        BaseException: The exception of the first failing rank, with its number and traceback as a note.
        TimeoutError: Lists the ranks that had not finished, and their stacks.

    The ranks are replaced after either, so that none of them waits for a peer in the next call.
    """
    pool = _pools.pop(world_size, None) or _Pool(world_size)
    try:
        results = pool.run(function, args, timeout)
    except BaseException:
        pool.close()
        raise
    _pools[world_size] = pool
    return results


@atexit.register
def _close_pools() -> None:
    while _pools:
        _pools.popitem()[1].close()


class _Pool:
    """Processes that wait for jobs, one a rank, each at one end of a pipe."""

    def __init__(self, world_size: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.jobs = 0
        self.processes = []
        self.pipes: list[Connection] = []
        for rank in range(world_size):
            ours, theirs = forking().Pipe()
            process = forking().Process(
                target=_rank,
                args=(rank, world_size, theirs, self.folder.name),
                name=f"rank-{rank}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        self.jobs += 1
        job = pickle.dumps((function, args, f"{self.folder.name}/group-{self.jobs}", timeout))
        for rank, pipe in enumerate(self.pipes):
            try:
                pipe.send_bytes(job)
            except BrokenPipeError:
                raise self._died(rank) from None
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while len(results) < len(self.pipes):
            busy = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in results}
            ready = wait(list(busy), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._timed_out(function, timeout, sorted(busy.values()))
            answers = [(self._receive(busy[pipe]), busy[pipe]) for pipe in ready]  # type: ignore[index]
            failures = sorted((finished, rank) for (finished, failed, _), rank in answers if failed)
            if failures:
                first = failures[0][1]
                raise next(outcome for (_, _, outcome), rank in answers if rank == first)
            results |= {rank: outcome for (_, _, outcome), rank in answers}
        return [results[rank] for rank in range(len(self.pipes))]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()

    def _receive(self, rank: int) -> tuple[float, bool, Any]:
        try:
            return pickle.loads(self.pipes[rank].recv_bytes())
        except EOFError:
            raise self._died(rank) from None

    def _died(self, rank: int) -> RuntimeError:
        self.processes[rank].join()
        return RuntimeError(
            f"rank {rank} of {len(self.pipes)} died with exit code {self.processes[rank].exitcode}"
        )

    def _timed_out(self, function: Callable[..., Any], timeout: float, busy: list[int]) -> TimeoutError:
        for rank in busy:
            os.kill(self.processes[rank].pid or 0, signal.SIGUSR1)
        stacks = [_stack_with(function.__name__, _stacks(self.folder.name, rank)) for rank in busy]
        error = TimeoutError(
            f"after {timeout:g} s still busy with {function.__qualname__}: "
            f"rank {', '.join(map(str, busy))} of {len(self.pipes)}"
        )
        for rank, stack in zip(busy, stacks, strict=True):
            error.add_note(f"rank {rank} stands at:\n{stack}")
        return error


def _stacks(folder: str, rank: int) -> Path:
    return Path(folder) / f"stacks-{rank}.txt"


def _stack_with(function: str, path: Path) -> str:
    """The stack in `path`, as soon as it reaches `function`.

    faulthandler writes it frame by frame, from a process that may have to wait for a core. A rank that is not
    inside the function has another stack, which is taken after some seconds.
    """
    deadline = time.monotonic() + 10
    while f"in {function}" not in (text := path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return text


def _rank(rank: int, world_size: int, pipe: Connection, folder: str) -> None:
    """The loop of one rank: joins a new group, runs a job, sends (end time, failed, result or exception)."""
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    with open(_stacks(folder, rank), "w") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks)
        while True:
            try:
                job = pipe.recv_bytes()
            except EOFError:
                return  # The tests are over.
            try:
                answer = pickle.dumps((time.monotonic(), False, _work(rank, world_size, job)))
            except BaseException as error:
                # The group is not left: peers would fail too, with errors that hide this one. The parent ends
                # all ranks.
                answer = _failure(rank, world_size, error)
            pipe.send_bytes(answer)


def _work(rank: int, world_size: int, job: bytes) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    function, args, store, timeout = pickle.loads(job)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout),
    )
    # Without it, a rank with a short function could leave and close its connections while a slow one still
    # joins.
    dist.barrier()
    result = function(*args)
    dist.destroy_process_group()
    return result


def _failure(rank: int, world_size: int, error: BaseException) -> bytes:
    finished = time.monotonic()
    note = f"on rank {rank} of {world_size}:\n{''.join(traceback.format_exception(error))}"
    error.add_note(note)
    try:
        answer = pickle.dumps((finished, True, error))
        pickle.loads(answer)
    except Exception:
        # An exception that does not survive pickling comes back as its text.
        answer = pickle.dumps((finished, True, RuntimeError(note)))
    return answer
