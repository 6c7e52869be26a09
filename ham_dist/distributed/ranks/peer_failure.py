"""Names the failed ranks when communication between ranks breaks off.

Each rank that notices it writes its status to the store of the process group.
"""

import time
from datetime import timedelta

import torch.distributed as dist

from ham_dist.distributed.internals import default_store
from ham_dist.errors import LostRankError

WAIT_SECONDS = 2.0
"""Time to wait for the other ranks' status. A collective that times out on one rank fails on all ranks at
once, since their connections are closed."""

WAITING = "waiting"
"""Status of a rank without a failure of its own."""

CONNECTION_ERRORS = ("Connection", "Read error", "Write error", "Timed out", "Socket", "Broken pipe")
"""Parts of gloo's messages about a rank that has ended or does not respond; they also contain the word
gloo."""

PAIR_CLOSED = "Application timeout caused pair closure"
"""gloo's whole message if another collective timed out and closed the connection of this one."""


def lost_peer(error: BaseException) -> bool:
    """Returns True if `error` means that communication with another rank broke off.

    gloo raises a plain RuntimeError then; NCCL and the stores raise torch's own error types.
    """
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return PAIR_CLOSED in str(error) or (
        "gloo" in str(error) and any(words in str(error) for words in CONNECTION_ERRORS)
    )


def note_failure(error: BaseException) -> None:
    """Writes to the store why this rank ends, so that the other ranks can report it."""
    _write_status(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def lost_rank_error(timeout: timedelta) -> LostRankError:
    """Returns the error that names the ranks that reported a failure, or else those that did not respond.

    Args:
        timeout: Timeout of collectives in this run, for the message.
    """
    statuses = _statuses_of_others() if _write_status(WAITING) else None
    if statuses is None:
        problem = "rank 0 has ended, and with it the store for the status of the ranks"
    elif failed := [
        f"rank {other} failed with {status}"
        for other, status in sorted(statuses.items())
        if status != WAITING
    ]:
        problem = "; ".join(failed)
    elif silent := [
        str(other)
        for other in range(dist.get_world_size())
        if other != dist.get_rank() and other not in statuses
    ]:
        minutes = f"{timeout.total_seconds() / 60:g} minutes (ranks.timeout_minutes)"
        problem = f"rank {', '.join(silent)} was killed, or has not responded for {minutes}"
    else:
        problem = "communication between the ranks failed, although all ranks still respond"
    return LostRankError(
        f"{problem}. This rank cannot continue.\n"
        "  Start the run again with --resume to continue from the last checkpoint."
    )


def _write_status(status: str) -> bool:
    """Returns False if the store is not reachable."""
    try:
        default_store().set(_key(dist.get_rank()), status)
    except (RuntimeError, ValueError):
        return False
    return True


def _statuses_of_others() -> dict[int, str] | None:
    """Returns the status by rank, None without a store; stops waiting once a rank has reported a failure."""
    others, statuses = set(range(dist.get_world_size())) - {dist.get_rank()}, dict[int, str]()
    deadline = time.monotonic() + WAIT_SECONDS
    while others - statuses.keys() and set(statuses.values()) <= {WAITING} and time.monotonic() < deadline:
        try:
            store = default_store()
            statuses |= {
                other: store.get(_key(other)).decode()
                for other in others - statuses.keys()
                if store.check([_key(other)])
            }
        except (RuntimeError, ValueError):
            return None
        time.sleep(0.05)
    return statuses


def _key(rank: int) -> str:
    return f"ham_dist/status/{rank}"
