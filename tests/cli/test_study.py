"""`ham-dist study`: its arguments, its workers, and how they are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.errors import HamError
from ham_dist.methods.magnitude import Magnitude
from ham_dist.study import pool
from tests.support.small_study import ONE_GROUP, do_study, lines_of, study_folder

runner = CliRunner()

TWO_GROUPS = ONE_GROUP.replace("test = true", "test = true\nsupernet = false\nseeds = [0, 1]").partition(
    '[[arms]]\nlabel = "magnitude"'
)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(ONE_GROUP, encoding="utf-8")
    return path


def test_plan_prints_the_grid_and_runs_nothing(file: Path, tmp_path: Path) -> None:
    done = runner.invoke(app, ["study", str(file), "--plan"])
    assert done.exit_code == 0
    assert "Study small: 1 supernets (groups) with 3 branches." in done.stdout
    done = runner.invoke(app, ["study", "run", str(file), "--plan", "--out", str(tmp_path / "out")])
    assert "with 3 branches, 0 finished." in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the folder of the study is missing. Give --out DIR, or --plan"),
        (["--plan", "--data", "log"], "--data log: expected NAME=DIR"),
        (
            ["--plan", "--data", "log=x"],
            "--data log=x: the study has no data of that name. It has: syn",
        ),
    ],
)
def test_mistakes_of_arguments(file: Path, arguments: list[str], message: str) -> None:
    done = runner.invoke(app, ["study", str(file), *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_data_that_is_missing_is_named(file: Path, tmp_path: Path) -> None:
    file.write_text(ONE_GROUP + '\n[[data]]\nname = "log"\npath = "nowhere"\n', encoding="utf-8")
    done = runner.invoke(app, ["study", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "It is the data 'log' of the study; --data log=DIR gives another folder" in done.stderr


def _study(file: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ham_dist", "study", str(file), "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _released(out: Path) -> bool:
    """True if no process holds a group."""
    locks = list((out / "locks").glob("*.lock"))
    for path in locks:
        with FileLock(path, timeout=0):
            pass
    return bool(locks)


def test_two_workers_that_are_stopped_and_started_again(tmp_path: Path) -> None:
    """SIGTERM comes when a group has begun; results are those of one worker without a stop."""
    unbroken = do_study(tmp_path / "unbroken", TWO_GROUPS)
    process = _study(tmp_path / "unbroken.toml", tmp_path / "out", "--workers", "2")
    while not list((tmp_path / "out").glob("groups/*/identity.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode in (75, 0), printed
    assert _released(tmp_path / "out")
    again = _study(tmp_path / "unbroken.toml", tmp_path / "out", "--workers", "2")
    printed, _ = again.communicate(timeout=600)
    assert again.returncode == 0, printed
    assert "study small: 2 branches" in printed
    assert lines_of(tmp_path / "out") == lines_of(unbroken.path)
    assert (tmp_path / "out" / "logs" / "worker-1.log").exists()


def test_failures_are_listed_and_retried(tmp_path: Path) -> None:
    with patch.object(Magnitude, "choice", side_effect=RuntimeError("a bug")):
        do_study(tmp_path / "out", ONE_GROUP)
    arguments = ["study", str(tmp_path / "out.toml"), "--out", str(tmp_path / "out")]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0
    assert "study small: 3 branches, 3 finished, 0 to run" in done.stdout
    assert "failed: magnitude of synthetic-dcnv2-seed-0" in done.stdout
    assert "RuntimeError: a bug" in done.stdout
    assert "failed branches: 1" in done.stdout
    with patch.object(pool, "run_workers") as run_workers:
        assert runner.invoke(app, [*arguments, "--retry"]).exit_code == 0
    assert len(run_workers.call_args.args[0].missing()) == 1


def test_workers_that_end_early_are_an_error(tmp_path: Path) -> None:
    folder = study_folder(tmp_path / "out", ONE_GROUP)
    said: list[str] = []
    with pytest.raises(HamError, match=r"exit codes 3, 3\) with 3 branches left"):
        pool.run_workers(folder, [sys.executable, "-c", "raise SystemExit(3)"], 2, said.append)
    assert said[0] == "study small: 3 branches, 0 finished, 3 to run"


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time\nfrom ham_dist.study.pool import end_with_parent\nend_with_parent()\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    worker.stdin.close()
    assert worker.wait(timeout=60) == -signal.SIGTERM
    worker.stdout.close()


def test_the_workers_share_the_cores(tmp_path: Path) -> None:
    folder = study_folder(tmp_path / "out", ONE_GROUP)
    program = "import os; print(os.environ['OMP_NUM_THREADS'])"
    with patch.object(pool, "cores", return_value=9), pytest.raises(HamError):
        pool.run_workers(folder, [sys.executable, "-c", program], 4, lambda line: None)
    logs = sorted((tmp_path / "out" / "logs").iterdir())
    assert [path.read_text() for path in logs] == ["2\n"] * 4


def test_study_test_writes_a_line_per_model(tmp_path: Path) -> None:
    do_study(tmp_path / "out", ONE_GROUP)
    done = runner.invoke(app, ["study", "test", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"3 models are scored in {tmp_path / 'out' / 'tests.jsonl'}" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "tests.jsonl").read_text().splitlines()]
    assert all(line.keys() == {"key", "test_auc", "test_logloss", "rows"} for line in lines)
    assert {line["rows"] for line in lines} == {100}
