"""Exports of a run with quantized tables, measured on its validation records."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import open_split
from ham_dist.errors import BundleError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import CODECS
from ham_dist.export.package import export_run, ids_of
from ham_dist.training.auc_bootstrap import aucs
from ham_dist.training.run_paths import RunPaths
from tests.support.ranks import run_on_ranks
from tests.support.small_run import small_run, tiny_run
from tests.support.whole_runs import do_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "run"
    do_run(tiny_run(pretrain={"max_epochs": 1}, search={"epochs": 1}, retrain={"max_epochs": 1}), folder)
    return folder


def verified(bundle: Path) -> dict[str, Any]:
    found = open_bundle(bundle).manifest.verified
    assert found is not None
    return found


def test_int8_is_measured_on_the_whole_validation_split(run: Path, tmp_path: Path) -> None:
    report = export_run(run, tmp_path / "int8", "int8", tolerance=0.01)
    assert report == verified(tmp_path / "int8")
    split = open_split(run / "data", Manifest.load(run / "data"), "validation")
    batch = split.take(split.rows)
    logits = [
        open_bundle(bundle).model()(ids_of(batch)).double() for bundle in (run / "bundle", tmp_path / "int8")
    ]
    before, after = aucs(torch.stack(logits).numpy(), batch.labels.numpy())
    assert report["records"] == "the validation split"
    assert report["rows"] == split.rows
    # The live model's sums are in another order.
    assert report["auc"] == pytest.approx(before, abs=1e-4)
    assert report["auc_difference"] == pytest.approx(after - before, abs=1e-4)
    assert report["log_loss_tolerance"] == pytest.approx(0.05 * report["log_loss"])


def test_a_limit_in_bytes_mixes_codecs(run: Path, tmp_path: Path) -> None:
    tables = open_bundle(run / "bundle").manifest.tables
    whole = sum(table.stored_bytes for table in tables)
    result = CliRunner().invoke(
        app,
        ["export", str(run), "--out", str(tmp_path / "half"), "--bytes", str(whole // 2), "--tolerance", "1"],
    )
    assert result.exit_code == 0, result.stderr
    manifest = open_bundle(tmp_path / "half").manifest
    assert manifest.table_bytes <= whole // 2
    assert all(table.codec in result.stdout for table in manifest.tables)
    assert "against the live model, on 100 records of the validation split: AUC " in result.stdout
    assert verified(tmp_path / "half")["overridden"] is True
    with pytest.raises(BundleError, match=r"--bytes 10: the tables have at least"):
        export_run(run, tmp_path / "none", "fp32", table_bytes=10)
    export_run(run, tmp_path / "all", "fp32", table_bytes=whole)
    assert open_bundle(tmp_path / "all").manifest.precision == "fp32"
    assert verified(tmp_path / "all")["max_difference"] <= 1e-6


def test_a_search_for_bytes_in_int8_gives_a_bundle_of_these_bytes(tmp_path: Path) -> None:
    targets = [{"bytes": limit, "precision": "int8"} for limit in (5_000, 3_000)]
    rows = (600, 400, 200, 500)
    settings = small_run(
        data={"synthetic": {"rows": 2_000, "planted_ranks": (3, 2, 1, 0), "num_embeddings": rows}},
        pretrain={"max_epochs": 1},
        search={"targets": targets, "epochs": 1},
        retrain={"max_epochs": 1},
    )
    do_run(settings, tmp_path / "run")
    for limit in (5_000, 3_000):
        out = tmp_path / str(limit)
        export_run(tmp_path / "run" / f"bytes-{limit}-int8", out, tolerance=1)
        manifest = open_bundle(out).manifest
        assert manifest.precision == "int8"
        # At most a column of the smallest table, and the padding of four tables, are left over.
        assert limit - 600 - 4 * 56 < manifest.table_bytes <= limit
        assert RunPaths(tmp_path / "run" / f"bytes-{limit}-int8").whole() is not None


def test_verify_finds_a_changed_byte_that_opening_does_not_read(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "int8", "int8", tolerance=1)
    verify = ["verify", str(tmp_path / "int8")]
    assert "are as they were written" in CliRunner().invoke(app, verify).stdout
    manifest = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    path = tmp_path / "int8" / manifest["tables"][0]["files"][0]["file"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    open_bundle(tmp_path / "int8")
    result = CliRunner().invoke(app, verify)
    assert result.exit_code == 2
    assert f"{path.name}: damaged" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8", "--bytes", "500"], "--bytes chooses a codec for each field"),
        (["--precision", "fp16", "--tolerance", "0.1"], "fp16 tables are not measured by their AUC"),
        (["--precision", "int7"], "'int7': expected one of fp32"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "no"), *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def _export(run: Path, out: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return export_run(run, out, "fp32", table_bytes=300, tolerance=1)


def test_two_ranks_write_the_bundle_of_one(run: Path, tmp_path: Path) -> None:
    reports = run_on_ranks(2, _export, run, tmp_path / "two")
    assert reports[0] == reports[1]
    (alone,) = run_on_ranks(1, _export, run, tmp_path / "one")
    assert reports[0] == pytest.approx(alone, abs=1e-6)
    one, two = (open_bundle(tmp_path / name).manifest for name in ("one", "two"))
    assert one.tables == two.tables
    assert one.files == two.files
    assert {table.codec for table in one.tables} <= CODECS.keys()
