"""Damaged and hostile files end in a plain error: no traceback, no hang, no endless work."""

import os
from pathlib import Path

import pytest

from tests.support.fuzz import KINDS, Kind, check, copy_needed, make_valid

INPUTS = 2_000
PARTS = 20
SEED = os.environ.get("HAM_DIST_FUZZ_SEED", "0")
"""Set by perf/robustness/fuzz.py."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_valid(tmp_path_factory.mktemp("valid"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_undamaged_files_can_be_read(valid: Path, tmp_path: Path, kind: Kind) -> None:
    """Otherwise the inputs below would all end at the same first error."""
    copy_needed(valid, tmp_path / "work", kind)
    kind.read(tmp_path / "work")


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_end_in_a_plain_error(valid: Path, tmp_path: Path, part: int) -> None:
    faults = [
        f"input {number}: {fault}"
        for number in range(part, INPUTS, PARTS)
        if (fault := check(valid, tmp_path / "work", SEED, number)) is not None
    ]
    assert not faults, "\n".join(faults)
