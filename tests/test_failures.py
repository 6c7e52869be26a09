"""What a run says and leaves when it is stopped from outside: Ctrl-C, SIGTERM, a rank that dies or hangs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ham_dist.config.load import dump_run
from ham_dist.run import run_stages
from ham_dist.training.checkpoints import moments
from tests.support.small_run import tiny_run
from tests.support.whole_runs import assert_same_bits

# Far more epochs than the test waits for.
LONG = ["--set=data.synthetic.rows=20000", "--set=pretrain.max_epochs=1000", "--set=pretrain.patience=1000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not list(folder.glob("checkpoints/pretrain/epoch-*/values.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in ten minutes"
        time.sleep(0.1)


def children_of(process: int) -> list[int]:
    """Numbers of the processes that `process` started.

    In /proc, the fourth field of `stat`, after a name in brackets, is the parent.
    """
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It has ended.
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                children.append(int(path.parent.name))
    return children


def interrupt(process: subprocess.Popen[str]) -> str:
    """Presses Ctrl-C as a person does, and returns standard error.

    It is pressed again if nothing happens: Python drops an interrupt during a destructor.
    """
    try:
        for _ in range(8):
            process.send_signal(signal.SIGINT)
            try:
                return process.communicate(timeout=60)[1]
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("still running after eight interrupts")
    finally:
        process.kill()
        process.wait()


@contextmanager
def sigint_not_ignored() -> Iterator[None]:
    """Processes started in the block get Ctrl-C.

    A shell starts background jobs with SIGINT ignored, which processes inherit.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ham_dist", "train", "--run-dir", str(tmp_path / "run"), *LONG]
    with sigint_not_ignored():
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
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
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ham_dist.train",
        "--run-dir",
        str(tmp_path / "run"),
        *LONG,
    ]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(max(children_of(process.pid)), signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert re.search(r"exitcode\s*: -9", errors), errors
    assert "ham_dist/" not in errors.replace("ham_dist.train", ""), errors


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_saves_and_exits_with_a_code_of_its_own(tmp_path: Path) -> None:
    process = start("ham_dist", "train", "--run-dir", str(tmp_path / "run"), *LONG)
    wait_for_checkpoint(tmp_path / "run", process)
    process.terminate()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 75
    assert "SIGTERM" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    newest = moments(tmp_path / "run" / "checkpoints" / "pretrain")[-1]
    assert newest.steps > 0, "it was saved where it stood, within an epoch"


def test_a_killed_ranks_group_starts_again_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    settings = tiny_run(precision={"dense": "float64"})
    (tmp_path / "settings.toml").write_text(dump_run(settings))
    run_stages(settings, tmp_path / "unbroken", resume=False)
    process = start(
        *("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"),
        *(
            "-m",
            "tests.support.faulty_rank",
            "killed",
            "1",
            "30",
            str(tmp_path / "settings.toml"),
            "--run-dir",
            str(tmp_path / "run"),
        ),
    )
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())) == 2, "two starts"
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")


def test_restarts_need_a_folder_that_they_can_find(tmp_path: Path) -> None:
    process = start("ham_dist", "train", TORCHELASTIC_MAX_RESTARTS="3")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Give --run-dir" in errors


def test_a_hung_rank_is_named_by_those_that_waited_for_it(tmp_path: Path) -> None:
    settings = tiny_run(ranks={"timeout_minutes": 0.25})
    (tmp_path / "settings.toml").write_text(dump_run(settings))
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    ranks = [
        start(
            *("tests.support.faulty_rank", "hung", "1", "8"),
            *(str(tmp_path / "settings.toml"), "--run-dir", str(tmp_path / "run")),
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="3", LOCAL_WORLD_SIZE="3",
            MASTER_ADDR="localhost", MASTER_PORT=str(port),
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        for rank in (0, 2):
            _, errors = ranks[rank].communicate(timeout=600)
            assert ranks[rank].returncode == 2, errors
            assert (
                "rank 1 was killed, or has not responded for 0.25 minutes (ranks.timeout_minutes)" in errors
            )
            assert "Traceback" not in errors
        assert ranks[1].poll() is None, "it is for the launcher to end"
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def test_ranks_killed_at_random_moments_end_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Five times; `python -m tests.support.kill_runs` does it as often as is wanted.

    In a process of its own, since forking needs one without threads.
    """
    command = [sys.executable, "-m", "tests.support.kill_runs", "--times", "5", "--seed", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^5 kills over \d+ runs, all the same to the last bit$", done.stdout, re.MULTILINE)
