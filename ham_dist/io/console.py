"""Terminal output: consoles, text and tables. Text is escaped, and never interpreted as markup."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ham_dist.io.printable import printable

WIDTH = 120
"""Line width if the output is not a terminal; rich would assume 80 columns and cut off numbers."""


def open_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Opens a console that prints strings unchanged: no markup, emoji, highlighting or line wrapping."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def text(value: str) -> Text:
    """`value` as literal text, escaped: a field's name may be `[red]` or hold escape sequences."""
    return Text(printable(value))


def make_table(
    names: Sequence[str],
    rows: Iterable[Iterable[str]],
    *,
    texts: int = 1,
    title: str | None = None,
    total: Sequence[str] | None = None,
) -> Table:
    """A table to print.

    Args:
        names: Column headers.
        rows: Cells by row.
        texts: Number of leading columns that hold text, aligned left; the others hold numbers.
        title: Title above the table.
        total: Cells of a last row, below a line.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        title=None if title is None else text(title),
        title_justify="left",
        show_footer=total is not None,
    )
    for number, name in enumerate(names):
        footer = "" if total is None else text(total[number])
        made.add_column(text(name), footer, justify="left" if number < texts else "right")
    for row in rows:
        made.add_row(*map(text, row))
    return made


def print_parts(
    parts: Iterable[RenderableType], console: Console | None = None, *, width: int = WIDTH
) -> None:
    """Prints strings and tables one after the other.

    Args:
        parts: Strings, which are escaped, and tables.
        console: Console to print to; None for standard output.
        width: Line width if standard output is not a terminal.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=width)
    for part in parts:
        printed: Any = text(part) if isinstance(part, str) else part
        console.print(printed)
