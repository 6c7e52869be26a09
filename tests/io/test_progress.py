import logging
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.progress import Progress

from ham_dist.io import progress as progressing
from ham_dist.io.progress import progress

log = logging.getLogger("ham_dist.tests")


class Clock:
    """Stands until it is moved on."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="ham_dist")
    return lambda: [record.getMessage() for record in caplog.records]


def test_lines_say_share_rate_and_time_left(told: Callable[[], list[str]]) -> None:
    """A line every ten seconds. An earlier process's work counts for the share, not for rate or time left."""
    clock = Clock()
    with progress("reading", 1000, log.info, clock=clock) as step:
        step(400, 0)
        for _ in range(4):
            clock.seconds += 4
            step(100, 20)
        clock.seconds += 4
        step(200, 40)
    assert told() == [
        # After 12 s, 300 of the 600 units that were to do: 60 rows in 12 s.
        "reading: 70 %, 5 rows/s, 12 s left",
        "reading: done in 20.0 s, 6 rows/s",
    ]


def test_the_end_is_told_once(told: Callable[[], list[str]]) -> None:
    """No line says 100 %, even where ten seconds have passed; and work without rows has an end too."""
    clock = Clock()
    with progress("encoding", 10, log.info, clock=clock) as step:
        clock.seconds += 60
        step(10, 1200)
    with progress("counting", 0, log.info, clock=clock):
        clock.seconds += 1
    assert told() == ["encoding: done in 60.0 s, 20 rows/s", "counting: done in 1.0 s, 0 rows/s"]


def test_work_that_fails_is_not_told_as_done(told: Callable[[], list[str]]) -> None:
    def fail() -> None:
        with progress("reading", 10, log.info, clock=Clock()) as step:
            step(1, 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert told() == []


def test_a_terminal_gets_a_bar_with_the_same_figures(
    monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    bars: list[Progress] = []

    def bar(*columns: object, **options: object) -> Progress:
        bars.append(Progress(*columns, **options))  # type: ignore[arg-type]
        return bars[-1]

    monkeypatch.setattr(progressing, "Progress", bar)
    clock = Clock()
    console = Console(stderr=True, force_terminal=True)
    with progress("reading", 1000, log.info, console=console, clock=clock) as step:
        clock.seconds += 10
        step(250, 50)
        (task,) = bars[0].tasks
        assert (task.description, task.percentage, task.fields["rate"]) == ("reading", 25.0, "5 rows/s")
    assert told() == ["reading: done in 10.0 s, 5 rows/s"]
