"""Packages are whole and like their bundle, or not written at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.errors import BackendError, BundleError, DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.packages.check import Runner
from ham_dist.export.packages.registry import FORMATS, PackageFormat
from ham_dist.export.packages.write import write_package
from ham_dist.export.writer import Description, write_bundle
from tests.support.live_models import chunks, export, live_model


def register(monkeypatch: pytest.MonkeyPatch, error: float = 0.0, **options: Any) -> list[int]:
    """Registers the format `copy`, whose probabilities are wrong by `error`; returns the batch sizes."""
    sizes: list[int] = []

    def runners(bundle: Bundle, folder: Path) -> Mapping[str, Runner]:
        assert (folder / "copy").is_file()
        model = bundle.model()

        def run(ids: Mapping[str, Ids]) -> torch.Tensor:
            found = torch.sigmoid(model(ids))
            sizes.append(len(found))
            return found + error

        return {"copy": run}

    package = PackageFormat(lambda _, folder: (folder / "copy").touch(), runners, **options)
    monkeypatch.setitem(FORMATS, "copy", package)
    return sizes


@pytest.mark.parametrize(("error", "shown"), [(2e-5, "2e-05"), (torch.nan, "nan")])
def test_another_model_is_refused_and_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, shown: str
) -> None:
    register(monkeypatch, error)
    with pytest.raises(BundleError, match=rf"\(copy\) .* by up to {shown} over 1 records, more than 1e-05"):
        write_package(bundle.root, "copy", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_records_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    (tmp_path / "none.csv").touch()
    with pytest.raises(DataError, match=r"none\.csv: has no records; expected some"):
        write_package(bundle.root, "copy", tmp_path / "out", str(tmp_path / "none.csv"))
    assert not (tmp_path / "out").exists()


def test_a_package_that_cannot_be_written_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    with pytest.raises(BundleError, match="no such format of packages; expected onnx"):
        write_package(bundle.root, "other", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="already exists"):
        write_package(bundle.root, "copy", tmp_path / "out")
    (tmp_path / "out").rmdir()
    register(monkeypatch, modules=("json", "no_such_module"))
    with pytest.raises(BackendError, match=r"no_such_module is not installed. .*ham-dist\[package\]"):
        write_package(bundle.root, "copy", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_records_of_a_user_are_compared_too(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(live_model("dcnv2"), tmp_path / "bundle")
    ids = {"user": [1, 2, 3], "age": [0, 1, 2], "genres": [[], [1], [2, 3]]}
    types = {"user": pa.int64(), "age": pa.int64(), "genres": pa.list_(pa.int64())}
    pq.write_table(pa.table(ids, schema=pa.schema(types)), tmp_path / "ids.parquet")
    sizes = register(monkeypatch)
    paths = [f"{tmp_path}/bundle", f"--out={tmp_path}/out", f"--records={tmp_path}/ids.parquet"]
    done = CliRunner().invoke(app, ["package", "--format=copy", *paths], catch_exceptions=False)
    assert done.exit_code == 0
    assert "copy: within 0 of the bundle's probabilities on 77 records" in done.output
    assert sizes == [1, 2, 7, 64, 3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["copy", "package.json"]
    with pytest.raises(DataError, match="no such file"):
        write_package(tmp_path / "bundle", "copy", tmp_path / "no", f"{tmp_path}/none.parquet")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_the_users_own_is_refused(tmp_path: Path, name: str) -> None:
    fields = [FieldEntry(name="user", num_embeddings=3, embedding_dim=2)]
    tables = chunks({"user": torch.ones(3, 2)})
    write_bundle(tmp_path / "bundle", Description(fields, None), chunks=tables, dense={"a": torch.ones(1)})
    with pytest.raises(BundleError, match="kind = 'custom'"):
        write_package(tmp_path / "bundle", name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
