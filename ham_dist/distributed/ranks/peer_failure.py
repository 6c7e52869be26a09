"""Who is missing, when an exchange between ranks breaks off: the ranks that noticed leave word in the store that they met in."""

import time
from datetime import timedelta

import torch.distributed as dist

from ham_dist.distributed.internals import default_store
from ham_dist.errors import LostRankError

WAIT_SECONDS = 2.0
"""How long the others have to leave word. An exchange that times out on one rank breaks off on all at once, since their connections are closed."""

WAITING = "waits"

BREAKS = ("Connection", "Read error", "Write error", "Timed out", "Socket", "Broken pipe")
"""Words of gloo's, in a message that names gloo, where another rank is gone or does not answer."""

AFTER_A_BREAK = "Application timeout caused pair closure"
"""All that gloo says of an exchange that was under way when another one timed out and closed the connection."""


def lost_peer(error: BaseException) -> bool:
    """Whether `error` says that an exchange broke off: gloo raises a plain RuntimeError there, NCCL and the store classes of torch's own."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return AFTER_A_BREAK in str(error) or (
        "gloo" in str(error) and any(words in str(error) for words in BREAKS)
    )


def note_failure(error: BaseException) -> None:
    """Leave word of why this rank ends, for those that will miss it."""
    _leave_word(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def roll_call(timeout: timedelta) -> LostRankError:
    """The error that names the ranks that gave word of a failure of their own, or else those that gave none.

    timeout: how long an exchange may take in this run, for the message.
    """
    words = _words_of_others() if _leave_word(WAITING) else None
    if words is None:
        missing = "rank 0 is gone, and with it the store where the others could have left word"
    elif failed := [
        f"rank {other} ended by {word}" for other, word in sorted(words.items()) if word != WAITING
    ]:
        missing = "; ".join(failed)
    elif silent := [
        str(other)
        for other in range(dist.get_world_size())
        if other != dist.get_rank() and other not in words
    ]:
        minutes = f"{timeout.total_seconds() / 60:g} minutes (ranks.timeout_minutes)"
        missing = f"no word from rank {', '.join(silent)}, which was killed or has not answered for {minutes}"
    else:
        missing = "an exchange between the ranks broke off, and none is missing"
    return LostRankError(f"{missing}. So this rank cannot go on; --resume goes on from the last checkpoint")


def _leave_word(word: str) -> bool:
    """Gives whether there was a store to leave it in."""
    try:
        default_store().set(_key(dist.get_rank()), word)
    except (RuntimeError, ValueError):
        return False
    return True


def _words_of_others() -> dict[int, str] | None:
    """By rank; None where the store is gone. Does not wait on once a rank has told of a failure."""
    others, words = set(range(dist.get_world_size())) - {dist.get_rank()}, dict[int, str]()
    deadline = time.monotonic() + WAIT_SECONDS
    while others - words.keys() and set(words.values()) <= {WAITING} and time.monotonic() < deadline:
        try:
            store = default_store()
            words |= {
                other: store.get(_key(other)).decode()
                for other in others - words.keys()
                if store.check([_key(other)])
            }
        except (RuntimeError, ValueError):
            return None
        time.sleep(0.05)
    return words


def _key(rank: int) -> str:
    return f"ham_dist/roll_call/{rank}"
