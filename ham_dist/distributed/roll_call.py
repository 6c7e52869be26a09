"""Who is missing, when an exchange between ranks breaks off: the ranks that noticed leave word in the store that they met in."""

import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ham_dist.errors import LostRankError

WAIT_SECONDS = 2.0
"""How long the others have to leave word. An exchange that times out on one rank breaks off on all at once, since their connections are closed."""

WAITING = "waits"

BREAKS = ("Connection", "Read error", "Write error", "Timed out", "Socket", "Broken pipe")
"""Words of gloo's where another rank is gone or does not answer."""


def lost_peer(error: BaseException) -> bool:
    """Whether `error` says that an exchange broke off: gloo raises a plain RuntimeError there, NCCL and the store classes of torch's own."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error) and any(words in str(error) for words in BREAKS)


def note_failure(error: BaseException) -> None:
    """Leave word of why this rank ends, for those that will miss it."""
    _leave_word(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def roll_call(timeout: timedelta) -> LostRankError:
    """The error that names the ranks that gave no word, or gave one of a failure of their own.

    timeout: how long an exchange may take in this run, for the message.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    words = _words_of_others(rank, ranks) if _leave_word(WAITING) else {}
    failed = {other: word for other, word in words.items() if word != WAITING}
    silent = [other for other in range(ranks) if other != rank and other not in words]
    parts = [f"rank {other} ended by {word}" for other, word in failed.items()]
    if silent:
        minutes = timeout.total_seconds() / 60
        parts.append(f"rank {', '.join(map(str, silent))} was killed, or hangs and did not answer within {minutes:g} minutes (ranks.timeout_minutes)")
    return LostRankError(
        f"{'; '.join(parts) or 'the ranks lost one another'}, so this rank cannot go on.\n  --resume goes on from the last checkpoint"
    )


def _leave_word(word: str) -> bool:
    if not dist.is_initialized():
        return False
    try:
        _get_default_store().set(_key(dist.get_rank()), word)
    except (RuntimeError, ValueError):
        return False  # The store went with the host that held it.
    return True


def _words_of_others(rank: int, ranks: int) -> dict[int, str]:
    store, words = _get_default_store(), dict[int, str]()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(words) < ranks - 1 and set(words.values()) <= {WAITING} and time.monotonic() < deadline:
        try:
            for other in set(range(ranks)) - {rank} - words.keys():
                if store.check([_key(other)]):
                    words[other] = store.get(_key(other)).decode()
        except (RuntimeError, ValueError):
            break
        time.sleep(0.05)
    return words


def _key(rank: int) -> str:
    return f"ham_dist/roll_call/{rank}"
