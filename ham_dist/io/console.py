"""What people read on a terminal: consoles, text and tables. Text from outside is escaped here, and nowhere is it read as markup."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ham_dist.io.printable import printable

WIDTH = 120
"""Columns where the output is not a terminal; rich assumes 80 there and would cut numbers off."""


def open_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints strings as they are, without markup, emoji codes, highlighting or line breaks of its own."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def text(value: str) -> Text:
    """`value` as it is: a field may be called `[red]`, or hold escape sequences."""
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
        names: Heads of the columns.
        rows: The cells, row by row.
        texts: The first columns, which hold text and are aligned left; the others hold numbers.
        title: Stands above the table.
        total: A last row below a line.
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
    """Print strings and tables one below the other.

    Args:
        parts: What is printed; a string is escaped.
        console: Standard output by default.
        width: Columns where standard output is not a terminal.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=width)
    for part in parts:
        printed: Any = text(part) if isinstance(part, str) else part
        console.print(printed)
