"""Grids on a terminal: the same as in a report."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ham_dist.report.grids import Cell, Grid


def print_grids(grids: Iterable[Grid], console: Console | None = None) -> None:
    """Print them one below the other, on standard output by default."""
    # Without a terminal rich assumes 80 columns and would cut numbers off.
    console = console or Console(width=None if Console().is_terminal else 120)
    for grid in grids:
        console.print(_table(grid))


def _table(grid: Grid) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=grid.title, title_justify="left", show_footer=grid.total is not None
    )
    for number, name in enumerate(grid.names):
        footer = _text(grid.total[number]) if grid.total is not None else ""
        table.add_column(name, footer, justify="left" if number < grid.texts else "right")
    for row in grid.rows:
        table.add_row(*map(_text, row))
    return table


def _text(cell: Cell | str) -> Text:
    """As it is: a field may be called [red]."""
    return Text(cell.text if isinstance(cell, Cell) else cell)
