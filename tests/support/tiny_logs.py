"""Logs of a few lines and recipes for them, to be prepared in tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ham_dist.data.recipe.load import Recipe, parse_recipe

FILES = ("train.csv", "late.csv")


def tiny_recipe(columns: Sequence[str], fields: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe of CSV files with a header, `click` first: train.csv, and late.csv for both other splits."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "source": "tests",
        "format": {"separator": ",", "header": True, "quote": '"'},
        "samples": {"file": list(FILES), "columns": ["click", *columns]},
        "label": {"column": "click", "positive_above": 0.5, "negative_below": 0.5},
        "fields": fields,
        "split": {"kind": "files", "train": [FILES[0]], "validation": [FILES[1]], "test": [FILES[1]]},
    }
    return parse_recipe(settings | changes, where="tests")


def write_tiny(folder: Path, header: str, train: Sequence[str], late: Sequence[str]) -> Path:
    """Write the two files, of a header and these lines each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in zip(FILES, (train, late), strict=True):
        (folder / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder
