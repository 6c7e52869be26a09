"""Printing the grids of a report on a terminal."""

from collections.abc import Iterable

from rich.console import Console

from ham_dist.io.console import make_table, print_parts
from ham_dist.report.grids import Cell, Grid


def print_grids(grids: Iterable[Grid], console: Console | None = None) -> None:
    """Print the grids one below the other, on standard output by default."""
    print_parts(
        (
            make_table(
                grid.names,
                (map(_text, row) for row in grid.rows),
                texts=grid.texts,
                title=grid.title,
                total=None if grid.total is None else [_text(cell) for cell in grid.total],
            )
            for grid in grids
        ),
        console,
    )


def _text(cell: Cell | str) -> str:
    return cell.text if isinstance(cell, Cell) else cell
