"""The lines of search.jsonl, and what is left of them when a search is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.training.search_trace import NUMBERS, POINTS, SearchTrace

ALPHA = torch.tensor([0.1234567, -2e-9, 3.0])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def search(path: Path, *, done: int = 0, until: int = 10, steps: int = 10, writes: bool = True) -> None:
    trace = SearchTrace(path, steps=steps, columns=3, done=done, writes=writes)
    for step in range(done, until):
        if trace.due(step):
            trace.add(step, used=2, target=1, mask=(ALPHA > 0).float(), logged={"alpha": ALPHA + step})


def test_a_line(tmp_path: Path) -> None:
    search(tmp_path / "x", until=1)
    assert lines(tmp_path / "x") == [
        {"step": 0, "used": 2, "target": 1, "open": "101", "name": "alpha", "values": [0.123457, -2e-9, 3.0]}
    ]


@pytest.mark.parametrize("stopped", [0, 4, 10])
def test_a_resumed_search_has_the_same_lines(tmp_path: Path, stopped: int) -> None:
    search(tmp_path / "whole")
    search(tmp_path / "resumed", until=7)
    with open(tmp_path / "resumed", "a") as file:
        file.write('{"step": 7, "us')
    search(tmp_path / "resumed", done=min(stopped, 7))
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(("steps", "columns"), [(1, 3), (500, 3), (501, 3), (3_630, 91), (10_000, 20_000)])
def test_the_number_of_lines_and_numbers_is_bounded(tmp_path: Path, steps: int, columns: int) -> None:
    trace = SearchTrace(tmp_path / "x", steps=steps, columns=columns, done=0, writes=True)
    points = sum(trace.due(step) for step in range(steps))
    assert 1 <= points <= POINTS
    assert points * columns <= NUMBERS
    assert points == steps or points > min(POINTS, NUMBERS // columns) / 2


def test_only_one_rank_writes(tmp_path: Path) -> None:
    search(tmp_path / "x", writes=False)
    assert not (tmp_path / "x").exists()


def test_without_a_number_per_column_the_mask_is_written(tmp_path: Path) -> None:
    trace = SearchTrace(tmp_path / "x", steps=1, columns=3, done=0, writes=True)
    mask = torch.tensor([0.0, 0.5, 1.0])
    trace.add(0, used=2, target=2, mask=mask, logged={"logits": torch.zeros(2, 2)})
    (line,) = lines(tmp_path / "x")
    assert (line["name"], line["values"], line["open"]) == ("mask", [0.0, 0.5, 1.0], "011")
