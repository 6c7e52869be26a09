"""A log of three columns in one of three formats, and its recipe."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ham_dist.data.recipe.load import Recipe, parse_recipe

NAMES = ("click", "price", "site")


def recipe_of(**changes: Any) -> Recipe:
    settings = {
        "name": "damaged",
        "source": "tests",
        "format": {"separator": "\t", "max_line_bytes": 200},
        "samples": {"file": "log", "columns": list(NAMES)},
        "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
        "fields": {"price": {"kind": "numeric"}, "site": {"kind": "categorical"}},
    }
    return parse_recipe(settings | changes, where="tests")


def write_log(path: Path, bad: Iterable[bytes], rows: int = 1000) -> None:
    """Good lines, every 40th followed by a bad one."""
    waiting = list(bad)
    lines = []
    for row in range(rows):
        lines.append(b"%d\t%d\ts%d" % (row % 2, row % 7, row % 5))
        if row % 40 == 0 and waiting:
            lines.append(waiting.pop(0))
    path.write_bytes(b"\n".join(lines) + b"\n")
