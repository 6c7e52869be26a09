"""Fields may have names of module attributes or words of SQL: from the raw log to the scores."""

import keyword
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.config.schema import RunSettings
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import parse_recipe
from ham_dist.embedding.tables import Table, embedding_bags
from ham_dist.export.bundle import open_bundle
from ham_dist.export.scorer import score
from ham_dist.run import run_stages
from ham_dist.training.run_folder import RunFolder
from tests.support.ranks import run_on_ranks

ROWS = 160
SQL = ("select", "from", "order", "group", "rowid", "row", "rows", "table", "values", "null", "end")


def _names() -> list[str]:
    """Attributes of the modules that hold tables, and words of SQL and Python, if a recipe allows them."""
    instance = EmbeddingBagCollection(tables=[])
    held = (nn.ModuleDict, nn.ParameterDict, ShardedEmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor)
    names = {*dir(instance), *SQL, *keyword.kwlist, *(name for kind in held for name in dir(kind))}
    allowed = sorted(name for name in names if name[0].isalpha() and name.casefold() != "label")
    return list({name.casefold(): name for name in allowed}.values())


def _run(data: Path) -> RunSettings:
    return RunSettings.model_validate(
        {
            "data": {"path": str(data), "batch_size": 32, "evaluation_batch_size": 64},
            "model": {"name": "deepfm", "base_dim": 2, "first_order": "table", "lift_dim": 2, "mlp": [2]},
            "optimizer": {"tables": "rowwise_adagrad"},
            "orthogonality": {"application": "decoupled"},
            "pretrain": {"max_epochs": 1},
            "search": {"targets": [{"columns": len(_names())}], "epochs": 1},
            "retrain": {"max_epochs": 1},
        }
    )


def _train(settings: RunSettings, folder: Path) -> None:
    run_stages(settings, folder, resume=False)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a column for each name, its values 0 to 3."""
    folder = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(0)
    columns = {"label_of_the_row": random.integers(0, 2, ROWS)}
    columns |= {name: random.integers(0, 4, ROWS) for name in _names()}
    pyarrow.csv.write_csv(pyarrow.table(columns), folder / "log.csv")
    return folder


@pytest.fixture(scope="module")
def data(raw: Path) -> Path:
    recipe = parse_recipe(
        {
            "name": "names",
            "source": "tests",
            "format": {"separator": ",", "header": True, "quote": '"'},
            "samples": {"file": "log.csv", "columns": ["label_of_the_row", *_names()]},
            "label": {"column": "label_of_the_row", "positive_above": 0.5, "negative_below": 0.5},
            "fields": {name: {"kind": "categorical", "min_count": 1} for name in _names()},
            "split": {"kind": "random"},
        },
        where="tests",
    )
    prepare(recipe, raw, raw.parent / f"{raw.name}-data")
    return raw.parent / f"{raw.name}-data"


def test_a_field_may_have_any_name_that_a_recipe_takes(raw: Path, data: Path, tmp_path: Path) -> None:
    run_on_ranks(2, _train, _run(data), tmp_path / "run", timeout=600)
    bundle = RunFolder(tmp_path / "run").bundle
    assert open_bundle(bundle).first_order().keys() == set(_names())
    assert score(bundle, raw / "log.csv", tmp_path / "scores.txt").rows == ROWS


@pytest.mark.parametrize("field", ["type", "a.b", "a/b", "", "%2E", "größe", "with blank", "embedding_bags"])
def test_a_table_is_kept_under_a_name_that_a_module_can_have(field: str) -> None:
    names = [Table(name, 3, 2, 2, 2).module_name for name in (field, "items", "a_b")]
    tables = [Table(name, 3, 2, 2, 2) for name in (field, "items", "a_b")]
    bags = embedding_bags(tables, "cpu")
    assert list(bags.embedding_bags) == names
    assert len(set(names)) == 3
    features = KeyedJaggedTensor(
        [field, "items", "a_b"], torch.tensor([1, 2, 0]), lengths=torch.ones(3, dtype=torch.int64)
    )
    looked_up = bags(features)
    assert looked_up.keys() == [field, "items", "a_b"]
    assert torch.equal(looked_up[field][0], bags.embedding_bags[names[0]].weight[1])
