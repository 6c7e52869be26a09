"""Whole runs with float16 tables on two ranks, and with bfloat16 products."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.export.bundle import open_bundle
from ham_dist.export.package import export_run
from tests.support.ranks import run_on_ranks
from tests.support.small_run import small_run, tiny_run
from tests.support.whole_runs import do_part, do_run, metrics, result

FLOAT16: dict[str, Any] = {
    "precision": {"tables": "float16"},
    "optimizer": {"tables": "rowwise_adagrad", "tables_learning_rate": 0.02},
    "orthogonality": {"application": "decoupled", "rows": 16},
}
TARGET = 2 * 200
"""Bytes: the 60, 40, 20 and 50 rows of a `small_run` have 2 bytes a number."""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves") / "run"
    sharding = {"sharding_types": {"field_0": "row_wise", "field_1": "table_wise", "field_3": "row_wise"}}
    run_on_ranks(
        2, do_run, small_run(**FLOAT16, sharding=sharding, search={"targets": [{"bytes": TARGET}]}), folder
    )
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with float32 tables, on one rank."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    do_run(small_run(**FLOAT16 | {"precision": {}}, search={"targets": [{"bytes": 2 * TARGET}]}), folder)
    return folder


def test_each_number_counts_as_two_bytes(halves: Path) -> None:
    found, sizes = result(halves), json.loads((halves / "sizes.json").read_text())
    assert (
        found["embedding_bytes"]
        == 2 * found["embedding_parameters"]
        == sum(size["bytes_after"] for size in sizes)
    )
    assert TARGET - 2 * 60 < found["embedding_bytes"] <= TARGET
    assert found["supernet"]["embedding_bytes"] == 2 * 6 * (60 + 40 + 20 + 50)
    placed = json.loads((halves / "plan.json").read_text())["supernet"]
    assert {entry["precision"] for entry in placed} == {"float16"}
    assert [entry["bytes"] for entry in placed] == [2 * 8 * rows for rows in (60, 40, 20, 50)]


def test_it_learns_what_float32_learns(halves: Path, whole: Path) -> None:
    """To 0.01 of AUC over 1,000 rows or so, where chance alone would make 0.5."""
    ours = result(halves)
    assert ours["supernet"]["auc"] == pytest.approx(result(whole)["supernet"]["auc"], abs=0.01)
    assert ours["supernet"]["auc"] > 0.7
    assert ours["test_auc"] > 0.7


def test_bundles_have_the_same_tables(halves: Path, tmp_path: Path) -> None:
    """The run's own bundle has float16 tables and the tolerance of float32.

    A float32 export of the run has the same numbers.
    """
    own = open_bundle(halves / "bundle")
    assert own.manifest.verified is not None
    assert own.manifest.verified["tolerance"] == 1e-6
    assert export_run(halves, tmp_path / "wide", "fp32")["max_difference"] <= 1e-6
    wide = open_bundle(tmp_path / "wide").tables()
    for field, table in own.tables().items():
        assert table.dtype == torch.float16
        assert torch.equal(table.float(), wide[field])


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = tiny_run(**FLOAT16)
    do_run(settings, tmp_path / "unbroken")
    do_part(settings, tmp_path / "run", 8)
    do_part(settings, tmp_path / "run", 29)
    do_run(settings, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "unbroken")
    tables = [open_bundle(tmp_path / name / "bundle").tables() for name in ("run", "unbroken")]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(table, tables[1][field]) for field, table in tables[0].items())


def test_with_bfloat16_products_a_run_learns_and_exports_in_float32(whole: Path, tmp_path: Path) -> None:
    """Evaluation is float32: slicing meets its 1e-5 and the bundle its 1e-6, or the run would end with an
    error.

    After so few steps, AUC changes by 0.02 per epoch, and rounding changes it by a part of that.
    """
    do_run(
        small_run(
            **FLOAT16 | {"precision": {"dense": "bfloat16"}}, search={"targets": [{"bytes": 2 * TARGET}]}
        ),
        tmp_path / "low",
    )
    low = result(tmp_path / "low")
    assert low["supernet"]["auc"] == pytest.approx(result(whole)["supernet"]["auc"], abs=0.02)
    assert low["test_auc"] > 0.7
    assert {
        values.dtype
        for values in open_bundle(tmp_path / "low" / "bundle").dense().values()
        if values.is_floating_point()
    } == {torch.float32}
