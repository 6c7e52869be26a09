"""A run resumes with its own settings, checkpoints, data and versions, from any folder and after a move."""

import json
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.data.synthetic.write import generate
from ham_dist.distributed.checkpoint import storage
from ham_dist.errors import CheckpointError, OtherRunError
from ham_dist.export.package import export_run
from ham_dist.run import run_stages
from ham_dist.training.run_folder import RunFolder, read_json
from tests.support.small_run import tiny_run
from tests.support.whole_runs import (
    Stopped,
    after_steps,
    assert_same_bits,
    do_part,
    do_run,
    metrics,
    result,
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped within its pretraining, after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    do_part(tiny_run(), folder, 18)
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    do_run(tiny_run(), folder)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("\nseed = 0\n\n[data]", "\nseed = 5\n\n[data]", "seed = 5, but the run has 0"),
        (
            "\nlearning_rate = 0.003\n",
            "\nlearning_rate = 0.1\n",
            "optimizer.learning_rate = 0.1, but the run has 0.003",
        ),
    ],
)
def test_an_edited_run_toml_is_refused_by_key_and_both_values(
    run: Path, tmp_path: Path, old: str, new: str, line: str
) -> None:
    edit(run / "run.toml", old, new)
    (run / "sizes.json").write_text("[]")  # of a finished run, which alone is exported
    for act in (
        lambda: RunFolder(run).read_settings(),
        lambda: run_stages(load_run(str(run / "run.toml")), run, resume=True),
        lambda: export_run(run, tmp_path / "bundle", "fp32"),
    ):
        with pytest.raises(CheckpointError, match=f"\n  {re.escape(line)}\n"):
            act()


def test_settings_and_identity_edited_alike_do_not_match_the_checkpoints(run: Path) -> None:
    edit(run / "run.toml", "\nseed = 0\n\n[data]", "\nseed = 5\n\n[data]")
    identity = read_json(run / "identity.json")
    identity["settings"]["seed"] = 5
    (run / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(
        OtherRunError, match=r"epoch-.*: was written with other settings .*:\n  seed = 0, but the run has 5"
    ):
        run_stages(RunFolder(run).read_settings(), run, resume=True)


def test_a_run_toml_that_was_cut_is_refused_and_can_be_written_again(run: Path) -> None:
    whole = (run / "run.toml").read_text()
    for end in ("[search]", "[ranks]"):
        (run / "run.toml").write_text(whole[: whole.index(f"\n{end}")])
        with pytest.raises(
            CheckpointError, match=r"run\.toml: is damaged: keys that the run began with are missing"
        ):
            RunFolder(run).read_settings()
    (run / "run.toml").unlink()
    assert RunFolder(run).read_settings() == tiny_run()
    do_part(RunFolder(run).read_settings(), run, 2)
    assert (run / "run.toml").read_text() == whole


def test_checkpoints_of_another_run_are_refused(run: Path, finished: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "pretrain")
    shutil.copytree(finished / "checkpoints" / "pretrain", run / "checkpoints" / "pretrain")
    with pytest.raises(OtherRunError, match="is a checkpoint of another run"):
        run_stages(tiny_run(), run, resume=True)
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    identity = read_json(other / "identity.json")
    (other / "identity.json").write_text(json.dumps(identity | {"id": "0" * 32}))
    with pytest.raises(OtherRunError, match=r"retrain/epoch-.*: is a checkpoint of another run"):
        export_run(other, tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()


def test_a_target_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = tiny_run(search={"targets": [{"columns": 3}, {"columns": 4}]})
    for name in ("a", "b"):
        do_part(settings, tmp_path / name, 30)
    shutil.rmtree(tmp_path / "a" / "columns-3")
    shutil.copytree(tmp_path / "b" / "columns-3", tmp_path / "a" / "columns-3")
    with pytest.raises(CheckpointError, match="columns-3: is a target of another run"):
        run_stages(settings, tmp_path / "a", resume=True)


def test_an_identity_that_is_gone_is_that_of_the_checkpoints(run: Path, finished: Path) -> None:
    before = read_json(run / "identity.json")
    (run / "identity.json").unlink()
    edit(run / "run.toml", "\nseed = 0\n\n[data]", "\nseed = 5\n\n[data]")
    with pytest.raises(CheckpointError, match="seed = 5, but the run has 0"):
        run_stages(load_run(str(run / "run.toml")), run, resume=True)
    edit(run / "run.toml", "\nseed = 5\n\n[data]", "\nseed = 0\n\n[data]")
    do_run(load_run(str(run / "run.toml")), run, resume=True)
    assert read_json(run / "identity.json") == before
    assert metrics(run) == metrics(finished)


def test_a_run_without_identities_resumes_and_gets_one(run: Path, finished: Path) -> None:
    (run / "identity.json").unlink()
    for values in run.glob("checkpoints/*/*/values.json"):
        whole = json.loads(values.read_text())
        del whole["values"]["run"]
        whole["sha256"] = storage._sha256_of(whole["files"], whole["values"])
        values.write_text(json.dumps(whole))
    do_run(RunFolder(run).read_settings(), run, resume=True)
    assert read_json(run / "identity.json")["earlier"] is True
    assert metrics(run) == metrics(finished)
    assert_same_bits(run, finished)


def test_other_versions_are_a_warning_in_the_log(run: Path) -> None:
    starts = read_json(run / "environment.json")
    assert "other versions" not in (run / "log.txt").read_text()
    now = starts[0]["versions"]["torch"]
    starts[0]["versions"]["torch"] = "2.0.1"
    (run / "environment.json").write_text(json.dumps(starts))
    do_part(tiny_run(), run, 1)
    assert (
        f"warning: versions have changed since the run was started: torch {now} (was 2.0.1)."
        in (run / "log.txt").read_text()
    )


def test_epochs_are_raised_while_their_stage_runs(tmp_path: Path) -> None:
    def settings(epochs: int, patience: int = 2) -> RunSettings:
        return tiny_run(pretrain={"max_epochs": epochs, "patience": patience}, retrain={"max_epochs": 1})

    do_run(settings(3, patience=3), tmp_path / "unbroken")
    with patch("ham_dist.run.model_result", side_effect=Stopped), pytest.raises(Stopped):
        run_stages(settings(1), tmp_path / "run", resume=False)
    do_run(settings(3, patience=3), tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "unbroken")
    assert result(tmp_path / "run") == result(tmp_path / "unbroken")
    assert load_run(str(tmp_path / "run" / "run.toml")) == settings(3, patience=3)
    assert (
        "setting changed: pretrain.max_epochs = 3 (before: 1)" in (tmp_path / "run" / "log.txt").read_text()
    )


def test_epochs_of_a_stage_that_has_ended_stay(finished: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in finished.glob("*.*")}
    for section, ended in (("pretrain", "search"), ("retrain", "result.json")):
        raised = tiny_run(**{section: {"max_epochs": 9}})
        with pytest.raises(
            CheckpointError, match=rf"max_epochs = 9, but the run has 2 \(.* {section} has ended, .*{ended}"
        ):
            run_stages(raised, finished, resume=True)
    assert {path: path.read_bytes() for path in finished.glob("*.*")} == before
    # Killed between the bundle and the result: another epoch would give weights that the bundle lacks.
    shutil.copytree(finished, run.parent / "exported")
    (run.parent / "exported" / "result.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"max_epochs = 9, but the run has 2 \(.* retrain has ended, .*bundle"
    ):
        run_stages(tiny_run(retrain={"max_epochs": 9}), run.parent / "exported", resume=True)
    with pytest.raises(CheckpointError, match=r"max_epochs = 1, but the run has 2 \(it can only be raised\)"):
        run_stages(tiny_run(pretrain={"max_epochs": 1}), run, resume=True)


def test_data_may_move_and_a_run_resumes_from_any_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tiny_run().data.synthetic, tmp_path / "prepared")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with after_steps(18), pytest.raises(Stopped):
        run_stages(tiny_run(data={"path": "prepared"}), Path("run"), resume=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = RunFolder("../run")
    assert run.read_settings().data.path == str(tmp_path / "prepared")
    do_part(run.read_settings(), run.path, 2)
    (tmp_path / "prepared").rename(tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"the data of this run was in .*prepared, and is missing there"
    ):
        run_stages(run.read_settings(), run.path, resume=True)
    do_part(run.read_settings(["data.path=../moved"]), run.path, 2)
    other = tiny_run().data.synthetic.model_copy(update={"seed": 1})
    generate(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match="the run began with other data"):
        run_stages(run.read_settings(["data.path=../other"]), run.path, resume=True)
    do_run(run.read_settings(["data.path=../moved"]), run.path, resume=True)
    assert metrics(run.path) == metrics(finished)
    assert read_json(run.identity)["settings"]["data.path"] == str(tmp_path / "moved")


def test_a_moved_run_of_several_targets_resumes_and_exports(tmp_path: Path) -> None:
    settings = tiny_run(search={"targets": [{"columns": 3}, {"columns": 4}]})
    do_run(settings, tmp_path / "unbroken")
    do_part(settings, tmp_path / "before", 80)
    assert (tmp_path / "before" / "columns-3" / "result.json").exists(), "stopped in the second target"
    assert not (tmp_path / "before" / "columns-4" / "result.json").exists()
    moved = (tmp_path / "before").rename(tmp_path / "after")
    do_run(RunFolder(moved).read_settings(), moved, resume=True)
    for target in ("columns-3", "columns-4"):
        assert result(moved / target) == result(tmp_path / "unbroken" / target)
        assert str(tmp_path) not in (moved / target / "run.toml").read_text()
        export_run(moved / target, tmp_path / target, "fp32")
