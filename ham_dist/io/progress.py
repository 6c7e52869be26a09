"""Progress of long work: a bar on a terminal, otherwise a log line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ham_dist.io.console import open_console
from ham_dist.io.printable import printable

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[float, int], None]
"""Called with the units done since the last call, and their rows (0 if an earlier process did them)."""


@contextmanager
def progress(
    title: str,
    total: float,
    say: Callable[[str], None],
    *,
    rows: str = "rows",
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Shows the share of work done, rows per second and remaining time while the block lasts.

    Args:
        title: Name of the work.
        total: Units of the whole work.
        say: Receives the lines; a last line follows when the block ends without an error.
        rows: Plural name of the rows, such as "samples".
        console: Console for the bar, if it is a terminal; None for standard error.
        clock: Returns the time in seconds.
    Yields:
        A function to report progress with.
    """
    console = console or open_console(stderr=True)
    title, pace = printable(title), _Pace(max(total, 1.0), rows, clock)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=pace.total, rate="")

            def draw(units: float, count: int) -> None:
                pace.add(units, count)
                bar.update(task, completed=pace.units, rate=pace.rate())

            yield draw
    else:
        last_line = clock()

        def print_line(units: float, count: int) -> None:
            nonlocal last_line
            pace.add(units, count)
            if clock() - last_line >= SECONDS_BETWEEN_LINES and pace.units < pace.total:
                last_line = clock()
                share = 100 * pace.units / pace.total
                say(f"{title}: {share:.0f} %, {pace.rate()}, {pace.seconds_left():.0f} s left")

        yield print_line
    say(f"{title}: done in {pace.seconds():.1f} s, {pace.rate()}")


class _Pace:
    """Units and rows done, and their rate."""

    def __init__(self, total: float, rows: str, clock: Callable[[], float]) -> None:
        self.total, self._name, self._clock, self._start = total, rows, clock, clock()
        self.units = self._units_here = 0.0
        self._rows = 0

    def add(self, units: float, rows: int) -> None:
        self.units += units
        self._rows += rows
        self._units_here += units if rows else 0

    def seconds(self) -> float:
        return max(self._clock() - self._start, 1e-9)

    def rate(self) -> str:
        rate = self._rows / self.seconds()
        return f"{3600 * rate:,.0f} {self._name}/h" if 0 < rate < 1 else f"{rate:,.0f} {self._name}/s"

    def seconds_left(self) -> float:
        return self.seconds() / max(self._units_here, 1) * max(self.total - self.units, 0)
