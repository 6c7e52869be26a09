"""Ranks name the failed rank when communication breaks off."""

from datetime import timedelta

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.peer_failure import lost_rank_error, note_failure
from tests.support.ranks import run_on_ranks


def breaks_off(failing: int | None, silent: int) -> str:
    """Rank `silent` writes no status, `failing` a failure; returns the message on the other ranks."""
    if process_group.rank() == failing:
        note_failure(ValueError("no such file\nand more"))
    process_group.gather_objects(None)  # after this, all ranks have started
    return str(lost_rank_error(timedelta(minutes=3))) if process_group.rank() not in (failing, silent) else ""


def test_ranks_that_do_not_respond_are_named() -> None:
    first, silent, third = run_on_ranks(3, breaks_off, None, 1)
    assert first.startswith("rank 1 was killed, or has not responded for 3 minutes (ranks.timeout_minutes)")
    assert third == first
    assert silent == ""


def test_a_failed_rank_is_named_with_its_reason_and_no_other_rank() -> None:
    messages = run_on_ranks(3, breaks_off, 2, 1)
    assert messages[0].startswith("rank 2 failed with ValueError: no such file. This rank cannot continue")
