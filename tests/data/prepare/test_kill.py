"""Preparing that is killed (SIGKILL) and started again ends with the same bytes, and two at once do not mix."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.prepare.workdir import work_on
from ham_dist.errors import DataError
from tests.data.prepare.test_pipeline import folder_bytes
from tests.support.raw_everything import everything, write_everything

KILLS = 4
# Small blocks, so that a file is many segments.
PROGRAM = """
import sys
from pathlib import Path
from ham_dist.data.raw import blocks
from ham_dist.data.prepare.pipeline import prepare
from tests.support.raw_everything import everything
blocks.BLOCK_BYTES = 4096
prepare(everything(), Path(sys.argv[1]), Path(sys.argv[2]), rows_per_shard=60)
"""


def files_of(folder: Path) -> int:
    # os.walk does not mind folders that go while it looks.
    return sum(len(files) for _, _, files in os.walk(folder))


def test_killed_at_random_moments_and_started_again(tmp_path: Path) -> None:
    raw = write_everything(tmp_path / "raw")
    out, work = tmp_path / "out", tmp_path / ".out.ham-work"
    prepare(everything(), raw, tmp_path / "whole", rows_per_shard=60)
    moments = random.Random(0)
    seen = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(raw), str(out)], stderr=subprocess.DEVNULL
        )
        # A number of files more than before, and a little later: somewhere within the work on the next one.
        until = seen + moments.randint(1, 60)
        while process.poll() is None and files_of(work) < until:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.kill()
        process.wait()
        if out.exists():
            break
        seen = files_of(work)
    assert seen > 0, "no kill came before the end"
    subprocess.run([sys.executable, "-c", PROGRAM, str(raw), str(out)], check=True, timeout=120)
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    assert not work.exists()
    Manifest.load(out).check(out, deep=True)


def test_two_processes_do_not_prepare_one_folder(tmp_path: Path) -> None:
    raw = write_everything(tmp_path / "raw")
    with work_on(tmp_path / "out", {}), pytest.raises(DataError, match="out: another process is writing it"):
        prepare(everything(), raw, tmp_path / "out")
