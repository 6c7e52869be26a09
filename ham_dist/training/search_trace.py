"""The course of a search within its epochs: search.jsonl in the run folder, for figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ham_dist.io.atomic import write_text
from ham_dist.io.untrusted import parse_json
from ham_dist.training.appender import FULL

POINTS = 500
"""Largest number of lines."""
NUMBERS = 1_000_000
"""Largest number of columns times lines, for tables with very many columns; about 10 MB."""
DIGITS = 6
"""Significant digits of the numbers."""


class SearchTrace:
    """Writes the columns in use and the method's numbers after every k-th step of the method.

    A line has the step of the search, counted from 0 over all epochs, the cost of the columns in use, the
    target, which columns are open (a text of S digits 0 and 1), and one number per column with its name. A
    resumed search continues the file where its checkpoint was made.

    Args:
        path: The file.
        steps: Training steps of the whole search.
        columns: S, the columns under search.
        done: Steps that were finished when the search was resumed; 0 at its start.
        writes: True on the rank that writes; on the others nothing happens.
    Attributes:
        every: Steps between two lines.
    """

    def __init__(self, path: Path, *, steps: int, columns: int, done: int, writes: bool) -> None:
        points = max(2, min(POINTS, NUMBERS // max(1, columns)))
        self.every = max(1, -(-steps // points))
        self._path = path if writes else None
        if writes:
            _keep(path, done)

    def due(self, step: int) -> bool:
        """Returns True if a line is to be added after `step` finished steps of the search."""
        return self._path is not None and step % self.every == 0

    def add(
        self, step: int, *, used: int, target: int, mask: torch.Tensor, logged: Mapping[str, torch.Tensor]
    ) -> None:
        """Add a line; not while the disk is full.

        Args:
            step: Finished steps of the search before this one.
            used: Cost of the columns in use, in the unit of the target.
            target: The target.
            mask: Factors of the columns, (S,).
            logged: The method's numbers. The first tensor of S numbers is written, or else the mask.
        """
        assert self._path is not None
        name, values = next(
            ((name, found) for name, found in logged.items() if found.shape == mask.shape), ("mask", mask)
        )
        entry = {
            "step": step,
            "used": used,
            "target": target,
            "open": "".join("1" if value > 0 else "0" for value in mask.tolist()),
            "name": name,
            "values": [float(f"{value:.{DIGITS}g}") for value in values.tolist()],
        }
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            if error.errno not in FULL:
                raise


def _keep(path: Path, done: int) -> None:
    """Remove the lines of steps from `done` on, and damaged lines."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = "".join(f"{line}\n" for line in text.split("\n")[:-1] if 0 <= _step(line) < done)
    if kept != text:
        write_text(path, kept)


def _step(line: str) -> int:
    """Step of a line; -1 if the line is damaged."""
    try:
        entry: Any = parse_json(line)
    except ValueError:
        return -1
    return entry["step"] if isinstance(entry, dict) and isinstance(entry.get("step"), int) else -1
