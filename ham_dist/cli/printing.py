"""What commands print of folders and plans, as tables."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def describe_folder(path: Path) -> None:
    """Print what `path` says of itself, without reading through it."""
    from ham_dist.cli.describe import describe

    print_parts(describe(path))


def print_parts(parts: Iterable[Any], width: int = 120) -> None:
    """Print what rich can render, part by part; `width` counts where the output is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    for part in parts:
        console.print(part)
