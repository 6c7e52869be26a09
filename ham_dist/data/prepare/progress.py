"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

Step = Callable[[int, int], None]
"""Told of units that are done since it was told last, and of the rows among them that this process did (0: they were finished before it began)."""


@contextmanager
def progress(title: str, total: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Step]:
    """Shows `title`, the share of `total` units that is done, rows a second and the time left, while the block lasts."""
    console = Console(stderr=True)
    pace = _Pace(max(total, 1.0), clock)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=pace.total, rate="")

            def draw(units: int, rows: int) -> None:
                pace.add(units, rows)
                bar.update(task, completed=pace.units, rate=pace.rate())

            yield draw
    else:
        told = clock()

        def tell(units: int, rows: int) -> None:
            nonlocal told
            pace.add(units, rows)
            if clock() - told >= SECONDS_BETWEEN_LINES and pace.units < pace.total:
                told = clock()
                log.info(
                    "%s: %.0f %%, %s, %.0f s left",
                    title,
                    100 * pace.units / pace.total,
                    pace.rate(),
                    pace.seconds_left(),
                )

        yield tell
    log.info("%s: done in %.1f s, %s", title, pace.seconds(), pace.rate())


class _Pace:
    """Units and rows that are done, and how fast."""

    def __init__(self, total: float, clock: Callable[[], float]) -> None:
        self.total, self._clock, self._began = total, clock, clock()
        self.units = self._units_here = self._rows = 0

    def add(self, units: int, rows: int) -> None:
        self.units += units
        self._rows += rows
        self._units_here += units if rows else 0

    def seconds(self) -> float:
        return max(self._clock() - self._began, 1e-9)

    def rate(self) -> str:
        return f"{self._rows / self.seconds():,.0f} rows/s"

    def seconds_left(self) -> float:
        return self.seconds() / max(self._units_here, 1) * max(self.total - self.units, 0)
