import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ham_dist.config.load import flat, load_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.errors import CheckpointError
from ham_dist.io.atomic import write_json
from ham_dist.training.run_folder import RunFolder, default_run_dir


def _start(folder: RunFolder, *overrides: str, resume: bool = False) -> bool:
    return folder.start(load_run(None, overrides), resume=resume, world_size=2, device="cpu")


def test_start_writes_settings_and_environment(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    assert not _start(folder, "seed=4")
    assert load_run(str(folder.settings)) == load_run(None, ["seed=4"])
    (environment,) = json.loads(folder.environment.read_text())
    assert environment["world_size"] == 2
    assert "torch" in environment["versions"]


def test_one_target_is_the_run_and_several_lie_within_it(tmp_path: Path) -> None:
    folder, targets = RunFolder(tmp_path / "run"), (Target(columns=4), Target(bytes=300))
    _start(folder)
    assert folder.of_target(targets[0], targets[:1]) is folder
    part = folder.of_target(targets[1], targets)
    assert part.path == folder.path / "bytes-300"
    whole = part.whole()
    assert whole is not None
    assert whole.path == folder.path
    assert folder.whole() is None


def test_folder_with_a_run_is_refused_without_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _start(folder)
    folder.checkpoints.mkdir()
    with pytest.raises(CheckpointError, match="already holds a run"):
        _start(folder)


def test_a_run_that_ended_before_its_first_checkpoint_may_start_anew_with_other_settings(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    _start(folder, "seed=1")
    folder.metrics.write_text("{}\n")
    (folder.data / "mine").mkdir(parents=True)
    assert not _start(folder, "seed=2")
    assert load_run(str(folder.settings)).seed == 2
    assert len(json.loads(folder.environment.read_text())) == 1
    assert not folder.metrics.exists()
    assert (folder.data / "mine").exists(), "data may be somebody's own"


def test_a_folder_with_somebodys_own_run_toml_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 1\n")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"holds run\.toml, but no run; .* Give another --run-dir"):
            _start(RunFolder(tmp_path), "seed=1", resume=resume)
    assert (tmp_path / "run.toml").read_text() == "seed = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, but no run"):
        _start(RunFolder(tmp_path), resume=True)


def test_resume_goes_on_and_notes_each_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not _start(folder, resume=True)
    assert _start(folder, resume=True)
    assert len(json.loads(folder.environment.read_text())) == 2


def test_resume_with_other_settings_names_them(tmp_path: Path) -> None:
    _start(RunFolder(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        _start(RunFolder(tmp_path), "seed=1", "search.method.alpha_init=0.5", resume=True)
    assert "\n  seed = 1, but the run has 0\n  search.method.alpha_init = 0.5, but the run has 0.01\n" in str(
        caught.value
    )


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"auc": 0.5})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"auc": float("nan")})
    assert json.loads(path.read_text()) == {"auc": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_default_folder_names_data_and_model() -> None:
    assert default_run_dir(RunSettings()).name.startswith("synthetic-dcnv2-")
    assert default_run_dir(load_run(None, ["data.path=data/movielens-1m", "model.name=fm"])).name.startswith(
        "movielens-1m-fm-"
    )


HOLDING = """
import sys
from ham_dist.config.load import load_run
from ham_dist.training.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.start(load_run(None), resume=True, world_size=1, device="cpu")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is at the run in tmp_path / "run"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_are_not_at_one_run(
    tmp_path: Path, elsewhere: subprocess.Popen[bytes], resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ham_dist.training.run_folder.SECONDS_TO_END", 0.2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        CheckpointError,
        match=r"is locked by another process that runs this run \(since 20.*\)\. "
        "Wait for its end, or stop it and resume",
    ):
        _start(RunFolder(tmp_path / "run"), resume=resume)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    elsewhere.kill()
    elsewhere.wait()
    assert _start(RunFolder(tmp_path / "run"), resume=True), "a process that was killed holds nothing"


def test_a_run_that_let_go_may_go_on_in_the_same_process(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    _start(first)
    first.release()
    assert _start(RunFolder(tmp_path / "run"), resume=True)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks: filelock turns ENOSYS into this error."""

    def refused(self: FileLock, *_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refused)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_that_another_process_has_just_started_stays(tmp_path: Path) -> None:
    _start(RunFolder(tmp_path), "seed=1")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"already holds a run\. Resume it with --resume"):
        _start(RunFolder(tmp_path), "seed=2")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert _start(RunFolder(tmp_path), "seed=1", resume=True)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("resume", [False, True])
def test_without_locks_one_of_two_starts_at_once_gets_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    second = RunFolder(tmp_path)

    def after_the_first(settings: RunSettings) -> dict[str, Any]:
        monkeypatch.setattr("ham_dist.training.run_folder.flat", flat)
        _start(RunFolder(tmp_path), "seed=1")
        return flat(settings)

    monkeypatch.setattr("ham_dist.training.run_folder.flat", after_the_first)
    with pytest.raises(CheckpointError, match="already holds a run"):
        _start(second, "seed=2", resume=resume)
    assert load_run(str(second.settings)).seed == 1


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _start(folder)
    folder.environment.write_text("")
    with pytest.raises(
        CheckpointError, match=r"environment\.json: is damaged: .*\. Remove it, and `ham-dist train --resume"
    ):
        _start(folder, resume=True)
