"""From raw click logs to scores: prepare, train every model on two ranks, export and score the records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.encode.expressions import tenth_of
from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.reader.split import open_split
from ham_dist.data.recipe.fields import MultiValued, Numeric
from ham_dist.data.recipe.load import Recipe, load_recipe
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.table_size import read_sizes
from ham_dist.export.bundle import open_bundle
from ham_dist.export.scorer import score
from ham_dist.run import run_stages
from ham_dist.training.checkpoints import load_best_weights
from ham_dist.training.evaluation import predict
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.state import open_sliced
from tests.support.model_settings import model_settings
from tests.support.ranks import run_on_ranks
from tests.support.raw_everything import everything, write_everything
from tests.support.raw_logs import raw_logs

MODELS = ("fm", "deepfm", "autoint", "dcnv2")


TOLERANCE = 1e-6


def short_run(data: Path, model: str, columns: int, batch_size: int, method: str = "ham") -> RunSettings:
    return RunSettings.model_validate(
        {
            "data": {"path": str(data), "batch_size": batch_size, "evaluation_batch_size": 4096},
            "model": model_settings(model, base_dim=4, lift_dim=4, attention_layers=1),
            "optimizer": {"learning_rate": 3e-3, "tables_learning_rate": 3e-3},
            "pretrain": {"max_epochs": 1},
            "search": {"targets": [{"columns": columns}], "epochs": 1, "method": method},
            "retrain": {"max_epochs": 1},
        }
    )


def train_and_score(runs: dict[Path, RunSettings]) -> dict[Path, dict[str, list[float]]]:
    """Runs each run in its folder, and scores every prepared row with the live sliced model.

    Returns:
        The probabilities by run and split, in the order of the shards.
    """
    return {folder: _train_and_score(settings, folder) for folder, settings in runs.items()}


def _train_and_score(settings: RunSettings, folder: Path) -> dict[str, list[float]]:
    run_stages(settings, folder, resume=False)
    assert settings.data.path is not None
    manifest = Manifest.load(settings.data.path)
    columns = {
        size.field: torch.tensor(size.kept_columns, dtype=torch.int64)
        for size in read_sizes(RunFolder(folder).sizes)
    }
    live = open_sliced(
        settings, manifest.num_embeddings(), columns, torch.device("cpu"), manifest.single_valued()
    )
    load_best_weights(RunFolder(folder).checkpoints / "retrain", live)
    scores = {}
    for name in SPLITS:
        split = open_split(settings.data.path, manifest, name, settings.data)
        rank, world_size = process_group.rank(), process_group.world_size()
        whole = split.batches(split.rows, rank=rank, world_size=world_size, order=None, keep_last=True)
        scores[name] = torch.sigmoid(predict(live, whole)[0]).tolist()
    return scores


def in_file_order(scores: dict[str, list[float]], lines: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scores of a random split, in the order of the raw samples, which are on the lines `lines`."""
    part = np.maximum(tenth_of(lines, 0) - 7, 0)
    ordered = np.full(len(lines), np.nan)
    for number, split in enumerate(SPLITS):
        ordered[part == number] = scores[split]
    return ordered


def check_run(folder: Path, columns: int, searched: int = 1) -> None:
    """Checks that all stages are done, and that the bundle has the kept columns."""
    result = json.loads((folder / "result.json").read_text())
    assert result["world_size"] == 2
    assert result["epochs"] == {"pretrain": 1, "search": searched, "retrain": 1}
    assert sum(result["kept_columns"].values()) == columns
    dims = {table.field: table.embedding_dim for table in open_bundle(folder / "bundle").manifest.tables}
    assert dims == {field: kept for field, kept in result["kept_columns"].items() if kept}


def check_scores(folder: Path, raw: Path, live: np.ndarray[Any, Any]) -> None:
    """Checks that the bundle gives each raw record the live model's probability of its prepared row."""
    assert score(folder / "bundle", raw, folder / "scores.parquet").rows == len(live)
    found = pq.read_table(folder / "scores.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(found, live, rtol=0, atol=TOLERANCE)
    assert found.std() > 100 * TOLERANCE, "the scores of the records differ"


def check_unknown_values(folder: Path, recipe: Recipe, manifest: Manifest) -> None:
    """Checks that a record of values that training never saw gets the score of one whose ids are all 0."""
    never_seen: dict[type, Any] = {Numeric: [1e300], MultiValued: [["never", "seen"]]}
    unknown = {
        recipe.column(name): never_seen.get(type(field), ["never seen"])
        for name, field in recipe.fields.items()
    }
    # A hashed field knows every value; only a missing one is 0.
    unknown |= {
        recipe.column(field.name): pa.nulls(1, pa.string())
        for field in manifest.fields
        if not field.vocabulary.rows
    }
    zeros = {
        field.name: pa.array([[0, 0]], pa.list_(pa.int32()))
        if field.multi_valued
        else pa.array([0], pa.int32())
        for field in manifest.fields
    }
    for name, records in (("raw", unknown), ("ids", zeros)):
        pq.write_table(pa.table(records), folder / f"{name}.parquet")
        score(folder / "bundle", folder / f"{name}.parquet", folder / f"{name}.txt", values=name)  # type: ignore[arg-type]
    assert (folder / "raw.txt").read_text() == (folder / "ids.txt").read_text()


@pytest.fixture(scope="module", params=["criteo-kaggle", "avazu"])
def logs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, Path, int]:
    """A recipe of datasets/, its raw folder, the prepared data, and the number of samples."""
    folder = tmp_path_factory.mktemp(request.param)
    raw, rows = raw_logs(request.param, folder / "raw")
    recipe = load_recipe(request.param)
    manifest = prepare(recipe, raw, folder / "data")
    assert (manifest.rows_in, manifest.rows_dropped, manifest.rejected.samples) == (rows, 0, 0)
    return recipe, raw, folder / "data", rows


def test_click_logs_go_from_raw_lines_to_scores_of_raw_lines(
    logs: tuple[Recipe, Path, Path, int], tmp_path: Path
) -> None:
    recipe, raw, data, rows = logs
    manifest = Manifest.load(data)
    columns = 2 * len(recipe.fields)
    runs = {tmp_path / model: short_run(data, model, columns, batch_size=1600) for model in MODELS}
    lines = np.arange(rows) + int(recipe.format.header)
    for folder, live in run_on_ranks(2, train_and_score, runs)[0].items():
        check_run(folder, columns)
        check_scores(folder, raw, in_file_order(live, lines))
    check_unknown_values(folder, recipe, manifest)


def test_hashed_and_multi_valued_fields_go_the_same_way(tmp_path: Path) -> None:
    """Three days with a header each, a side file, and every kind of field; every field keeps columns."""
    raw, recipe = write_everything(tmp_path / "raw"), everything()
    manifest = prepare(recipe, raw, tmp_path / "data", rows_per_shard=200)
    assert next(field for field in manifest.fields if field.name == "device").vocabulary.rows == 0
    columns = 2 * len(recipe.fields)
    settings = short_run(tmp_path / "data", "deepfm", columns, batch_size=300, method="uniform")
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"first_order": "table"})}
    )
    (live, _) = run_on_ranks(2, train_and_score, {tmp_path / "run": settings})
    check_run(tmp_path / "run", columns, searched=0)
    assert min(json.loads((tmp_path / "run" / "result.json").read_text())["kept_columns"].values()) > 0
    places = np.arange(900)
    check_scores(tmp_path / "run", raw, in_file_order(live[tmp_path / "run"], places + 1 + places // 300))
    check_unknown_values(tmp_path / "run", recipe, manifest)
