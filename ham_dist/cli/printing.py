"""Output of the commands: lines and tables."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from ham_dist.io.printable import printable


def describe_folder(path: Path) -> None:
    """Print what the folder `path` holds, without reading its data."""
    from ham_dist.cli.describe import describe

    print_parts(describe(path))


def print_parts(parts: Iterable[Any], width: int = 120) -> None:
    """Print strings and tables, one below the other; `width` is used if the output is not a terminal."""
    from ham_dist.io.console import print_parts as print_all

    print_all(parts, width=width)


def say(line: str) -> None:
    """Print a line that may contain text from files, with control characters escaped."""
    typer.echo(printable(line))
