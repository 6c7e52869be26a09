"""Killed (SIGKILL) and restarted, prepare ends with the same bytes; two processes at once do not mix."""

import random
from pathlib import Path

import pytest

from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.prepare.workdir import work_on
from ham_dist.errors import DataError
from tests.support.kill_at import killed_at_change
from tests.support.prepared import folder_bytes
from tests.support.raw_everything import everything, write_everything

# Small blocks, so that a file is many segments.
PROGRAM = """
from pathlib import Path
from ham_dist.data.raw import blocks
from ham_dist.data.prepare.pipeline import prepare
from tests.support.raw_everything import everything
blocks.BLOCK_BYTES = 4096
prepare(everything(), Path({raw!r}), Path({out!r}), rows_per_shard=60)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_and_started_again(tmp_path: Path, seed: int) -> None:
    raw = write_everything(tmp_path / "raw")
    out = tmp_path / "out"
    prepare(everything(), raw, tmp_path / "whole", rows_per_shard=60)
    program = PROGRAM.format(raw=str(raw), out=str(out))
    draw = random.Random(seed)
    assert killed_at_change(program, draw.randint(10, 40), tmp_path), "it changes more files than that"
    for _ in range(3):
        # With a delay it is within some library's work, which one is left to chance.
        killed_at_change(
            program, draw.randint(1, 60), tmp_path, delay=draw.choice([0.0, 0.02 * draw.random()])
        )
        if out.exists():
            break
    assert not killed_at_change(program, 10**9, tmp_path)
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw", "whole"]
    Manifest.load(out).check(out, deep=True)


def test_two_processes_do_not_prepare_one_folder(tmp_path: Path) -> None:
    raw = write_everything(tmp_path / "raw")
    with (
        work_on(tmp_path / "out", {}),
        pytest.raises(DataError, match="out: is being written by another process"),
    ):
        prepare(everything(), raw, tmp_path / "out")
