"""Workers of a study: lines of results, resuming, failures, and the test split."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.split import Split, open_split
from ham_dist.errors import ConfigError, DataError, ReportError
from ham_dist.methods.magnitude import Magnitude
from ham_dist.run import with_target
from ham_dist.study.folder import StudyFolder
from ham_dist.study.grid import open_study
from ham_dist.study.reuse import reuse
from ham_dist.study.scoring import score_on_test
from ham_dist.study.selection import selection
from ham_dist.study.worker import _run_group, work
from ham_dist.training.loop import train_epoch
from tests.support.kill_at import killed_at_change
from tests.support.small_study import STUDY, copied, do_study, lines_of, scores_of, study_folder
from tests.support.whole_runs import do_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    return do_study(tmp_path_factory.mktemp("studies") / "finished").path


def test_each_branch_has_a_line_that_repeats_it(finished: Path) -> None:
    lines = {line["arm"]: line for line in lines_of(finished).values()}
    assert lines.keys() == {"supernet", "ham", "magnitude", "all", "supernet+plain", "plain"}
    ham = lines["ham"]
    assert (ham["study"], ham["model"], ham["seed"], ham["error"]) == ("small", "dcnv2", 0, None)
    assert ham["target"] == {"columns": 4}
    assert ham["method"]["name"] == "ham"
    assert ham["columns"] == sum(ham["kept_columns"].values()) == 4
    assert ham["data"] == {"name": "synthetic", "seed": 0, "digest": ham["data"]["digest"]}
    assert ham["weight_steps"] == 3 * 12, "twelve steps in each of three epochs"
    assert RunSettings.model_validate(ham["settings"]).search.targets[0].columns == 4
    assert [lines[arm]["columns"] for arm in ("supernet", "all", "magnitude")] == [12, 12, 4]
    assert [lines[arm]["target"] for arm in ("supernet", "all")] == [None, "all"]
    assert lines["supernet"]["epochs"] == {"pretrain": 1}
    assert lines["plain"]["group"] == lines["supernet+plain"]["group"] != ham["group"]
    assert all("test_auc" not in line and line["validation_logloss"] > 0 for line in lines.values())
    for line in (json.loads(text) for text in (finished / "results.jsonl").read_text().splitlines()):
        assert line["versions"]["torch"] == torch.__version__


def test_a_branch_is_the_run_with_its_settings(finished: Path, tmp_path: Path) -> None:
    folder = study_folder(finished)
    (keyed,) = [keyed for keyed in folder.branches() if keyed.branch.arm == "ham"]
    settings = keyed.branch.settings
    do_run(with_target(settings, settings.search.targets[0]), tmp_path / "run")
    alone = json.loads((tmp_path / "run" / "result.json").read_text())
    line = lines_of(finished)[keyed.key]
    assert line["validation_auc"] == alone["validation_auc"]
    assert line["kept_columns"] == alone["kept_columns"]
    out = copied(finished, tmp_path / "study")
    score_on_test(out, {}, lambda line: None)
    tests = scores_of(out)
    assert tests[keyed.key]["test_auc"] == pytest.approx(alone["test_auc"], abs=1e-4), "few rows, near ties"
    # float32 sums in another order
    assert tests[keyed.key]["test_logloss"] == pytest.approx(alone["test_logloss"], abs=1e-6)
    supernets = [key for key, line in lines_of(finished).items() if line["arm"] == "supernet"]
    assert tests[supernets[0]]["test_logloss"] == pytest.approx(alone["supernet"]["logloss"], abs=1e-6)


def test_checkpoints_are_deleted_and_bundles_kept(finished: Path) -> None:
    assert list(finished.rglob("checkpoints")) == []
    assert len(list(finished.rglob("bundle/manifest.json"))) == 6


def test_a_study_killed_again_and_again_ends_with_the_same_results(finished: Path, tmp_path: Path) -> None:
    program = (
        "import torch\ntorch.set_num_threads(1)\nfrom tests.support.small_study import ONE_GROUP, do_study\n"
        f"do_study(Path({str(tmp_path / 'study')!r}), ONE_GROUP)"
    )
    kills = 0
    while killed_at_change(program, 30 + 120 * kills, tmp_path / "study"):
        kills += 1
    assert kills >= 2, "it changes more files than that"
    whole = lines_of(finished)
    found = lines_of(tmp_path / "study")
    assert sorted(line["arm"] for line in found.values()) == ["ham", "magnitude", "supernet"]
    assert found == {key: whole[key] for key in found}
    assert list((tmp_path / "study").rglob("checkpoints")) == []


def test_a_folder_with_results_alone_runs_what_is_missing(finished: Path, tmp_path: Path) -> None:
    lines = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    out = tmp_path / "elsewhere"
    out.mkdir()
    (out / "results.jsonl").write_text("".join(lines))
    do_study(out)
    assert not (out / "groups").exists(), "nothing is run"
    removed = next(number for number, line in enumerate(lines) if json.loads(line)["arm"] == "magnitude")
    (out / "results.jsonl").write_text("".join(lines[:removed] + lines[removed + 1 :]))
    do_study(out)
    assert lines_of(out) == lines_of(finished)
    assert len(list(out.glob("groups/*/branches/*"))) == 1


def test_lines_are_found_in_the_branches_folders(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "study")
    text = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(text[: len(text) // 2])
    with patch("ham_dist.study.worker.run_branches", side_effect=AssertionError("nothing is left to run")):
        do_study(out)
    assert lines_of(out) == lines_of(finished)


def test_a_line_of_other_defaults_is_refused(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "study")
    text = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(text.replace('"cross_layers": 3', '"cross_layers": 2'))
    with pytest.raises(ConfigError, match=r"with model.cross_layers = 2, but the study has 3, a default"):
        study_folder(out).collect()


def test_finished_branches_of_another_study_are_taken_over(finished: Path, tmp_path: Path) -> None:
    text = STUDY.replace('name = "small"', 'name = "other"').replace(
        'label = "ham"', 'label = "orthogonality"'
    )
    folder = study_folder(tmp_path / "other", text)
    folder.write_grid()
    source = copied(finished, tmp_path / "source")
    (magnitude,) = [keyed for keyed in folder.branches() if keyed.branch.arm == "magnitude"]
    shutil.rmtree(study_folder(source).branch_folder(magnitude).path / "bundle")
    assert reuse(folder, source) == 5
    folder.collect()
    assert [keyed.branch.arm for keyed in folder.missing()] == ["magnitude"], "its model is gone"
    work(folder)
    assert folder.failed() == {}
    found, whole = lines_of(folder.path), lines_of(finished)
    assert found.keys() == whole.keys()
    for key, line in found.items():
        changed = {name for name in line.keys() | whole[key].keys() if line.get(name) != whole[key].get(name)}
        assert changed <= {"study", "arm", "group", "reused"}
    assert {line["arm"] for line in found.values() if line.get("reused")} == {
        "supernet", "orthogonality", "all", "supernet+plain", "plain",
    }  # fmt: skip
    score_on_test(folder.path, {}, lambda line: None)
    score_on_test(source := copied(finished, tmp_path / "source-2"), {}, lambda line: None)
    assert scores_of(folder.path) == scores_of(source)
    assert reuse(folder, finished) == 0, "nothing is missing"


def test_a_part_of_a_study_is_run_and_the_rest_later(finished: Path, tmp_path: Path) -> None:
    study = open_study(finished.with_suffix(".toml"))
    part = StudyFolder(tmp_path / "study", study, selection(["arm=supernet,magnitude"], study.groups))
    part.write_grid()
    work(part)
    whole = lines_of(finished)
    assert {line["arm"] for line in lines_of(part.path).values()} == {"supernet", "magnitude"}
    assert part.missing() == []
    assert list(part.path.rglob("checkpoints")), "the rest starts from them"
    rest = StudyFolder(part.path, study)
    assert len(rest.missing()) == 4
    with patch("ham_dist.stages.fit.train_epoch", wraps=train_epoch) as trained:
        _run_group(rest, study.groups[0])
    assert {call.args[0] for call in trained.call_args_list} == {"retrain"}, "it is not pretrained again"
    work(rest)
    assert lines_of(rest.path) == whole
    assert list(part.path.rglob("checkpoints")) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("arms=ham", r"expected AXIS=VALUE\[,VALUE\] with one of the axes seed, data, model, arm"),
        ("arm", "expected AXIS=VALUE"),
        ("seed=0,7", "no branch of the study has seed '7'; it has: 0"),
    ],
)
def test_a_part_that_is_not_there_is_refused(option: str, message: str, finished: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        selection([option], open_study(finished.with_suffix(".toml")).groups)


def test_a_study_does_not_reuse_its_own_folder(finished: Path) -> None:
    with pytest.raises(ReportError, match="is the folder of this study"):
        reuse(study_folder(finished), finished)


def test_a_failed_branch_leaves_the_others_and_can_be_retried(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with patch.object(Magnitude, "choice", side_effect=RuntimeError("a bug")):
        folder = do_study(out)
    failed = folder.failed()
    assert sorted(line["arm"] for line in failed.values()) == ["magnitude", "plain"]
    assert all("RuntimeError: a bug" in line["error"] and line["columns"] is None for line in failed.values())
    assert len(lines_of(out)) == 6
    before = (out / "results.jsonl").read_bytes()
    do_study(out)
    assert (out / "results.jsonl").read_bytes() == before, "failures are run again only if asked for"
    folder.forget_failures()
    do_study(out)
    assert folder.failed() == {}
    assert lines_of(out) == lines_of(finished)


def test_a_target_that_cannot_be_met_is_a_failure_of_its_branch(tmp_path: Path) -> None:
    text = STUDY.replace("{ columns = 4 }", "{ columns = 13 }, { columns = 12 }").partition("[[arms]]")
    folder = do_study(
        tmp_path / "study",
        text[0] + '[[arms]]\nlabel = "uniform"\nset = { search.method.name = "uniform" }\n',
    )
    (failed,) = folder.failed().values()
    assert failed["target"] == {"columns": 13}
    assert "columns = 13: more columns than the 12" in failed["error"]
    assert len(lines_of(folder.path)) == 3


def test_data_that_cannot_be_trained_on_fails_all_branches_of_its_group(tmp_path: Path) -> None:
    folder = do_study(tmp_path / "study", STUDY.replace("batch_size = 64", "batch_size = 5000", 1))
    assert len(folder.failed()) == 6
    assert all("data.batch_size = 5000" in line["error"] for line in folder.failed().values())


def test_a_group_that_another_worker_holds_is_left_to_it(finished: Path, tmp_path: Path) -> None:
    folder = study_folder(tmp_path / "study")
    group = folder.study.groups[0]
    with folder.claim(group), patch("ham_dist.study.worker.run_branches", side_effect=AssertionError):
        assert not _run_group(folder, group)
    done = study_folder(copied(finished, tmp_path / "done"))
    with done.claim(done.study.groups[0]):
        assert _run_group(done, done.study.groups[0]), "nothing is left of it"
        work(done)


def test_the_test_split_is_not_read_before_study_test(tmp_path: Path) -> None:
    opened = []

    def spy(folder: str, manifest: object, name: str, *rest: object) -> Split:
        opened.append(name)
        return open_split(folder, manifest, name, *rest)  # type: ignore[arg-type]

    with patch("ham_dist.training.samples.open_split", spy):
        folder = do_study(tmp_path / "study", STUDY.replace("test = true", "test = false"))
    assert set(opened) == {"train", "validation"}
    with pytest.raises(ConfigError, match="the study small has test = false"):
        score_on_test(folder.path, {}, lambda line: None)


def test_study_test_scores_each_model_once(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "study")
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ReportError, match=r"results.jsonl: 1 of 6 branches are not finished, first groups/"):
        score_on_test(out, {}, lambda line: None)
    assert not (out / "tests.jsonl").exists()
    score_on_test(out, {}, lambda line: None, partial=True)
    partial = (out / "tests.jsonl").read_text()
    assert len(partial.splitlines()) == 5
    (out / "results.jsonl").write_text("".join(lines))
    with patch("ham_dist.study.scoring.open_bundle", wraps=None, side_effect=AssertionError) as scored:
        with pytest.raises(AssertionError):
            score_on_test(out, {}, lambda line: None)
        assert scored.call_count == 1
    score_on_test(out, {}, lambda line: None)
    assert (out / "tests.jsonl").read_text().startswith(partial)
    assert len((out / "tests.jsonl").read_text().splitlines()) == 6


def test_study_test_needs_the_bundles_and_the_data(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "study")
    with pytest.raises(ConfigError, match="--data other=x: the study has no data of that name"):
        score_on_test(out, {"other": "x"}, lambda line: None)
    (group, *_) = (out / "groups").iterdir()
    manifest = json.loads((group / "data" / "manifest.json").read_text())
    (tmp_path / "other").mkdir()
    shutil.copytree(group / "data", tmp_path / "other", dirs_exist_ok=True)
    (tmp_path / "other" / "manifest.json").write_text(json.dumps({**manifest, "seed": 1}))
    with pytest.raises(DataError, match=r"holds other data than groups/.* was trained on"):
        score_on_test(out, {"synthetic": str(tmp_path / "other")}, lambda line: None)
    shutil.rmtree(next(out.glob("groups/*/branches/ham-*/bundle")))
    with pytest.raises(ReportError, match=r"bundle: is missing, as are 0 other bundles"):
        score_on_test(out, {}, lambda line: None)
    with pytest.raises(ReportError, match=r"grid.json: .*; expected the folder of a study"):
        score_on_test(tmp_path, {}, lambda line: None)


FALLING = """
[[arms]]
label = "falling"
set = { search.method.name = "ham", search.schedule = "falling", search.epochs = 2 }
targets = [{ columns = 3 }, { columns = 6 }]
"""


def test_targets_of_a_falling_arm_share_one_search(tmp_path: Path) -> None:
    base, *_ = STUDY.partition("[[arms]]")
    folder = do_study(tmp_path / "study", base + FALLING)
    lines = {line["columns"]: line for line in lines_of(folder.path).values() if line["arm"] == "falling"}
    settings = next(keyed.branch for keyed in folder.branches() if keyed.branch.falls).settings
    do_run(settings, tmp_path / "run")
    for columns in (6, 3):
        alone = json.loads((tmp_path / "run" / f"columns-{columns}" / "result.json").read_text())
        assert lines[columns]["validation_auc"] == alone["validation_auc"]
        assert lines[columns]["kept_columns"] == alone["kept_columns"]
    assert list(folder.path.rglob("checkpoints")) == []
    whole = lines_of(folder.path)
    folder.results.remove([lines[3]["key"]])
    for path in folder.path.glob("groups/*/branches/falling-columns-3-*"):
        shutil.rmtree(path)
    do_study(folder.path, base + FALLING)
    assert lines_of(folder.path) == whole, "the search before it is run again"
