"""Whole runs: their files, resuming after a stop, and equal results on several ranks and in repeats."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedTensor

from ham_dist.config.load import load_run
from ham_dist.distributed.checkpoint.storage import VALUES, _sha256_of
from ham_dist.embedding.mask import ordered_columns
from ham_dist.errors import CheckpointError, TargetError
from ham_dist.export.package import export_run
from tests.support.ranks import run_on_ranks
from tests.support.small_run import small_run
from tests.support.whole_runs import DECOUPLED, FLOAT64, TIMES, assert_same_bits, do_run, metrics, result


def test_a_run_takes_no_mean_of_fields_with_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = []

    def spy(looked_up: KeyedTensor, dims: dict[str, int], counts: dict[str, torch.Tensor]) -> torch.Tensor:
        averaged.append(list(counts))
        return ordered_columns(looked_up, dims, counts)

    monkeypatch.setattr("ham_dist.models.ctr.ordered_columns", spy)
    do_run(small_run(), tmp_path / "run")
    assert averaged
    assert not any(averaged)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    do_run(small_run(), folder)
    return folder


def test_a_run_leaves_its_whole_truth(unbroken: Path) -> None:
    found = result(unbroken)
    wanted = {
        "model",
        "method",
        "dataset",
        "seed",
        "target",
        "kept_columns",
        "test_auc",
        "test_logloss",
        "validation_auc",
    }
    wanted |= {"embedding_parameters", "embedding_bytes", "dense_parameters", "world_size", "device"}
    assert wanted <= found.keys()
    assert json.loads((unbroken / "result.json").read_text()).keys() >= TIMES
    assert sum(found["kept_columns"].values()) == 6
    for name in (
        "run.toml",
        "environment.json",
        "log.txt",
        "plan.json",
        "checkpoints",
        "tensorboard",
        "bundle/manifest.json",
    ):
        assert (unbroken / name).exists(), name
    sizes = json.loads((unbroken / "sizes.json").read_text())
    assert [size["base_dim"] for size in sizes] == [6, 6, 6, 6]
    assert {size["field"]: size["searched_dim"] for size in sizes} == found["kept_columns"]
    assert sum(size["bytes_after"] for size in sizes) == found["embedding_bytes"]
    stages = [entry["stage"] for entry in metrics(unbroken)]
    assert stages == sorted(stages, key=["pretrain", "search", "retrain", "result"].index)
    assert set(stages) == {"pretrain", "search", "retrain", "result"}


def test_run_toml_repeats_the_run_bit_for_bit(unbroken: Path, tmp_path: Path) -> None:
    do_run(load_run(str(unbroken / "run.toml")), tmp_path / "again")
    assert result(tmp_path / "again") == result(unbroken)
    assert metrics(tmp_path / "again") == metrics(unbroken)


@pytest.mark.parametrize("stop_after", [2, 5, 8])
def test_a_run_cut_off_in_any_stage_resumes_to_the_same_bits(
    unbroken: Path, tmp_path: Path, stop_after: int
) -> None:
    folder = tmp_path / "run"
    do_run(small_run(), folder, stop_after=stop_after)
    assert not (folder / "result.json").exists()
    do_run(small_run(), folder, resume=True)
    assert result(folder) == result(unbroken)
    assert metrics(folder) == metrics(unbroken)


def test_a_finished_run_is_left_alone(unbroken: Path) -> None:
    before = (unbroken / "result.json").read_bytes()
    do_run(small_run(), unbroken, resume=True)
    assert (unbroken / "result.json").read_bytes() == before


def test_another_runs_folder_is_refused(unbroken: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        do_run(small_run(), unbroken)
    with pytest.raises(CheckpointError, match="seed"):
        do_run(small_run().model_copy(update={"seed": 5}), unbroken, resume=True)


def test_other_data_is_refused_by_resume_and_export(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    manifest = folder / "data" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["fields"][1]["rows"] += 1
    manifest.write_text(json.dumps(content))
    wanted = r"began with other data than its data folder holds now:\n  fields\[field_1\]\.rows: 40, not 41\n"
    with pytest.raises(CheckpointError, match=wanted):
        do_run(small_run(), folder, resume=True)
    with pytest.raises(CheckpointError, match=wanted):
        export_run(folder, tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def unbroken_float64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken64") / "run"
    do_run(small_run(precision=FLOAT64), folder)
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
def test_in_float64_ranks_make_the_same_model_bit_for_bit(
    unbroken_float64: Path, tmp_path: Path, ranks: int
) -> None:
    run_on_ranks(ranks, do_run, small_run(precision=FLOAT64), tmp_path / "run")
    assert_same_bits(tmp_path / "run", unbroken_float64)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_in_float64_a_run_resumes_with_another_number_of_ranks_to_the_same_bits(
    unbroken_float64: Path, tmp_path: Path, before: int, after: int
) -> None:
    folder = tmp_path / "run"
    run_on_ranks(before, do_run, small_run(precision=FLOAT64), folder, False, 5)
    run_on_ranks(after, do_run, small_run(precision=FLOAT64), folder, True)
    assert_same_bits(folder, unbroken_float64)


@pytest.mark.parametrize("ranks", [2, 3])
def test_in_float32_ranks_pretrain_alike(unbroken: Path, tmp_path: Path, ranks: int) -> None:
    """Metrics agree to 1e-5, and only until the search.

    The mask of the search is hard, so the last digit of an alpha near 0 can open or close a column.
    """
    run_on_ranks(ranks, do_run, small_run(), tmp_path / "run")
    assert sum(result(tmp_path / "run")["kept_columns"].values()) == 6
    pretraining = [entry for entry in metrics(unbroken) if entry["stage"] == "pretrain"]
    for ours, theirs in zip(metrics(tmp_path / "run"), pretraining, strict=False):
        for name in ("train_loss", "validation_logloss", "validation_auc"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (theirs["epoch"], name)


def test_one_supernet_serves_several_targets(tmp_path: Path) -> None:
    settings = small_run(search={"targets": [{"columns": 3}, {"columns": 9}, {"bytes": 1_000}]})
    do_run(settings, tmp_path / "run")
    narrow = {label: result(tmp_path / "run" / label) for label in ("columns-3", "columns-9", "bytes-1000")}
    assert [sum(narrow[label]["kept_columns"].values()) for label in ("columns-3", "columns-9")] == [3, 9]
    assert 0 < narrow["bytes-1000"]["embedding_bytes"] <= 1_000
    assert len({json.dumps(found["supernet"]) for found in narrow.values()}) == 1
    alone = small_run(search={"targets": [{"columns": 9}]})
    do_run(alone, tmp_path / "alone")
    assert result(tmp_path / "alone") == narrow["columns-9"], (
        "a search starts from the pretrained supernet, not from the search before it"
    )


@pytest.mark.parametrize("method", ["uniform", "random", "magnitude"])
def test_controls_go_the_same_way(tmp_path: Path, method: str) -> None:
    do_run(small_run(search={"method": method}), tmp_path / "run")
    found = result(tmp_path / "run")
    assert sum(found["kept_columns"].values()) == 6
    assert found["epochs"]["search"] == 0


@pytest.mark.parametrize("model", ["fm", "deepfm", "autoint"])
@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_every_model_on_two_ranks(tmp_path: Path, model: str, tables: str) -> None:
    settings = small_run(
        model,
        model={"first_order": "table"} if tables == "adam" and model != "autoint" else {},
        optimizer={"tables": tables, "tables_learning_rate": 0.02 if tables == "rowwise_adagrad" else 3e-3},
        orthogonality={"application": "decoupled" if tables == "rowwise_adagrad" else "coupled"},
        search={"targets": [{"columns": 3}], "method": "magnitude"},
    )
    run_on_ranks(2, do_run, settings, tmp_path / "run")
    assert sum(result(tmp_path / "run")["kept_columns"].values()) == 3


def test_a_target_that_cannot_be_met_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"columns = 25: more columns than the 24"):
        do_run(small_run(search={"targets": [{"columns": 25}]}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def damage(folder: Path) -> None:
    """Cut the newest pretraining checkpoint's data in half."""
    newest = max((folder / "checkpoints" / "pretrain").glob("epoch-*"))
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_checkpoint_is_named_and_the_run_resumes_from_the_one_before(
    unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    do_run(small_run(), folder, stop_after=3)
    damage(folder)
    do_run(small_run(), folder, resume=True)
    assert result(folder) == result(unbroken)
    assert metrics(folder) == metrics(unbroken)
    (warning,) = [line for line in (folder / "log.txt").read_text().splitlines() if "warning" in line]
    assert re.search(r"epoch-0003: cannot be loaded \(.*__0_0.distcp is damaged: .*\)", warning)


def test_a_checkpoint_whose_best_epoch_is_missing_is_skipped(unbroken: Path, tmp_path: Path) -> None:
    """A stage resumed from it could not end, because a stage ends with its best epoch."""
    folder, settings = tmp_path / "run", small_run(checkpoint={"keep": 3})
    do_run(settings, folder, stop_after=3)
    stage = folder / "checkpoints" / "pretrain"
    whole = json.loads((stage / "epoch-0003" / VALUES).read_text())
    whole["values"]["stopper"]["best_epoch"] = 2
    (stage / "epoch-0003" / VALUES).write_text(
        json.dumps(whole | {"sha256": _sha256_of(whole["files"], whole["values"])})
    )
    shutil.rmtree(stage / "epoch-0002")
    do_run(settings, folder, resume=True)
    assert "epoch-0003: the checkpoint of its best epoch, 2, is missing." in (folder / "log.txt").read_text()
    assert result(folder) == result(unbroken)


def test_fused_state_survives_resuming_on_other_ranks(tmp_path: Path) -> None:
    settings = small_run(
        optimizer={"tables": "rowwise_adagrad", "tables_learning_rate": 0.02},
        orthogonality=DECOUPLED,
        precision=FLOAT64,
    )
    do_run(settings, tmp_path / "unbroken")
    run_on_ranks(2, do_run, settings, tmp_path / "run", False, 2)
    do_run(settings, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")


def test_one_target_of_several_does_not_resume_by_itself(tmp_path: Path) -> None:
    settings = small_run(search={"targets": [{"columns": 3}, {"columns": 9}]})
    do_run(settings, tmp_path / "run", stop_after=6)
    part = tmp_path / "run" / "columns-3"
    with pytest.raises(CheckpointError, match="is the folder of one target of the run in"):
        do_run(load_run(str(part / "run.toml")), part, resume=True)
