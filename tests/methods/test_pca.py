"""PCA against numpy's singular values of centered rows, on several ranks, and on variances by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.errors import ConfigError
from ham_dist.library import Search, mask_columns
from ham_dist.methods.pca import PCA, PCASettings
from ham_dist.training.covariance import covariances
from ham_dist.training.state import open_supernet
from tests.support.one_shot import float64_run
from tests.support.plain_model import FIELDS, SINGLE_VALUED, PlainModel
from tests.support.ranks import run_on_ranks
from tests.support.search_space import DIMS, LAYOUT, space
from tests.support.sharded_model import local_batch, plain_batch, whole_tables

Tables = dict[str, torch.Tensor]


def covariances_on_ranks(run: RunSettings) -> tuple[Tables, dict[str, Tables]]:
    """On each rank: the tables, and their covariances by either kind of weights; two training batches."""
    state = open_supernet(run, FIELDS, torch.device("cpu"), SINGLE_VALUED)
    found = {
        weights: covariances(state, lambda: iter([local_batch(1), local_batch(2)]), weights)
        for weights in ("rows", "lookups")
    }
    return whole_tables(state), found


def test_covariances_are_those_of_rows_and_of_lookups_on_any_ranks() -> None:
    """The sums of 1 and 3 ranks have the same bits; they are rounded to float32, hence the tolerance."""
    run = float64_run("fm")
    tables, found = run_on_ranks(1, covariances_on_ranks, run)[0]
    for _, on_three in run_on_ranks(3, covariances_on_ranks, run):
        for weights, of_tables in found.items():
            assert all(torch.equal(on_three[weights][field], wanted) for field, wanted in of_tables.items())
    model = PlainModel(run, tables).double()
    looked_up = torch.cat([model.columns(plain_batch(seed)[0]).detach() for seed in (1, 2)])
    of_lookups = looked_up.split([table.shape[1] for table in tables.values()], dim=1)
    for (name, table), lookups in zip(tables.items(), of_lookups, strict=True):
        of_rows = np.cov(table.double().numpy(), rowvar=False, bias=True)
        np.testing.assert_allclose(found["rows"][name], of_rows, rtol=0, atol=1e-7)
        of_columns = np.cov(lookups.numpy(), rowvar=False, bias=True)
        np.testing.assert_allclose(found["lookups"][name], of_columns, rtol=0, atol=1e-7)


def dims(variances: Mapping[str, list[float]], columns: int, **settings: Any) -> list[int]:
    """Kept dims of tables with these variances along axes that are not their columns."""
    generator = torch.Generator().manual_seed(0)
    rotated = {}
    for table, values in variances.items():
        axes = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())[0]
        rotated[table] = axes @ torch.diag(torch.tensor(values).double()) @ axes.T
    columns_and = replace(space(Target(columns=columns)), covariances=lambda weights: rotated)
    kept = LAYOUT.split(PCA(columns_and, PCASettings.model_validate(settings)).choice())
    assert all(kept[table].tolist() == list(range(len(kept[table]))) for table in DIMS), "first columns"
    return [len(kept[table]) for table in DIMS]


VARIANCES = {"user": [60.0, 20, 16, 4], "gender": [0.9, 0.1], "movie": [8.0, 2, 0, 0]}


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        # Shares before each component: user 0, 0.6, 0.8, 0.96; gender 0, 0.9; movie 0, 0.8, 1, 1.
        (3, [1, 1, 1]),
        (4, [2, 1, 1]),
        (6, [3, 1, 2]),
        (7, [3, 2, 2]),
        (8, [4, 2, 2]),
        (9, [4, 2, 3]),
    ],
)
def test_the_target_sets_one_share_for_all_tables(columns: int, wanted: list[int]) -> None:
    assert dims(VARIANCES, columns) == wanted


@pytest.mark.parametrize(("columns", "wanted"), [(3, [3, 0, 0]), (4, [3, 0, 1]), (7, [4, 1, 2])])
def test_eigenvalues_of_all_tables_are_compared(columns: int, wanted: list[int]) -> None:
    assert dims(VARIANCES, columns, rule="eigenvalues") == wanted


def test_a_table_without_variance_comes_last() -> None:
    constant = VARIANCES | {"movie": [0.0, 0.0, 0.0, 0.0]}
    assert dims(constant, 6) == [4, 2, 0]


def ebc() -> EmbeddingBagCollection:
    dims = {"t_item": (4, 10), "t_user": (3, 5)}
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[name])
            for name, (dim, rows) in dims.items()
        ]
    )


def test_dims_are_those_of_numpys_singular_values() -> None:
    """The library's tables: as many components as numpy needs for the share at which the target is met."""
    torch.manual_seed(3)
    model = torch.nn.Module()
    collection = ebc()
    model.ebc = mask_columns(collection)
    tables = {name: bag.weight.detach().double() for name, bag in collection.embedding_bags.items()}
    for columns in range(2, 8):
        kept = Search(model, columns=columns, method="pca").finish()
        assert sum(map(len, kept.values())) == columns
        needed, spare = [], []
        for name, table in tables.items():
            variances = np.linalg.svd(table - table.mean(0), compute_uv=False) ** 2
            shares = np.cumsum(variances) / variances.sum()
            needed.append(np.concatenate([[0.0], shares])[len(kept[name]) - 1])
            spare.append(shares[len(kept[name]) - 1])
        assert max(needed) <= min(spare) + 1e-6, "no table has a component that another needs more"


def test_weights_by_lookups_need_samples() -> None:
    model = torch.nn.Module()
    model.ebc = mask_columns(ebc())
    search = Search(model, columns=3, method=PCASettings(weights="lookups"))
    with pytest.raises(ConfigError, match="needs the training samples"):
        search.finish()
