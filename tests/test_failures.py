"""What a run says and leaves when it is stopped from outside: Ctrl-C, a rank that dies, a disk that is full."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from ham_dist.errors import CheckpointError
from ham_dist.run import run_stages
from tests.stages.small_run import small_run

# Far more epochs than the test waits for.
LONG = ["--set=data.synthetic.rows=20000", "--set=pretrain.max_epochs=1000", "--set=pretrain.patience=1000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/pretrain/epoch-*/values.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.1)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C as a person does, again if nothing happens: Python drops an interrupt that falls into a destructor. Gives standard error."""
    try:
        for _ in range(8):
            process.send_signal(signal.SIGINT)
            try:
                return process.communicate(timeout=10)[1]
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("still running after eight interrupts")
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ham_dist", "train", "--run-dir", str(tmp_path / "run"), *LONG]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "run", process)
    errors = interrupt(process)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "run").glob("checkpoints/pretrain/epoch-*/values.json"))


def test_a_rank_that_dies_ends_all_and_no_traceback_hides_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "ham_dist.train",
        "--run-dir",
        str(tmp_path / "run"),
        *LONG,
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "run", process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert re.search(r"exitcode\s*: -9", errors), errors
    assert "ham_dist/" not in errors.replace("ham_dist.train", ""), errors


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0
    save = dcp.save

    def full_from_the_third_time(*arguments: object, **options: object) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(dcp, "save", full_from_the_third_time)
    with pytest.raises(CheckpointError, match=r"epoch-0003: cannot be written .*No space left on device.*\n.*Make room there"):
        run_stages(small_run(), tmp_path / "run", resume=False)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "pretrain").iterdir())
    assert "epoch-0002" in left
    assert not [name for name in left if name.endswith(".partial") or name == "epoch-0003"]
    run_stages(small_run(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").exists()
