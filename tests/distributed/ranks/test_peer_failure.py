"""Ranks whose exchange broke off find out who is missing."""

from datetime import timedelta

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.peer_failure import note_failure, roll_call
from tests.support.ranks import run_on_ranks


def breaks_off(failing: int | None, silent: int) -> str:
    """Rank `silent` leaves no word and `failing` one of a failure; the message of any other."""
    if process_group.rank() == failing:
        note_failure(ValueError("no such file\nand more"))
    process_group.gather_objects(None)  # From here on nobody has to wait for a slow start.
    return str(roll_call(timedelta(minutes=3))) if process_group.rank() not in (failing, silent) else ""


def test_those_that_gave_no_word_are_named() -> None:
    first, silent, third = run_on_ranks(3, breaks_off, None, 1)
    assert first.startswith(
        "no word from rank 1, which was killed or has not answered for 3 minutes (ranks.timeout_minutes)"
    )
    assert third == first
    assert silent == ""


def test_one_that_failed_is_named_with_its_reason_and_others_are_not_blamed() -> None:
    messages = run_on_ranks(3, breaks_off, 2, 1)
    assert messages[0].startswith("rank 2 ended by ValueError: no such file. So this rank cannot go on")
