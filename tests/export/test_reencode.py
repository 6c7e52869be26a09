"""Quantized exports of runs whose data is gone: from the run's own bundle, on labelled records."""

from pathlib import Path

import pytest
import torch

from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.reader.split import open_split
from ham_dist.data.recipe.load import load_recipe
from ham_dist.errors import BundleError, CheckpointError, DataError
from ham_dist.export.bundle import Bundle, open_bundle, verify_files
from ham_dist.export.labelled import labelled_records
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.package import export_run, ids_of
from ham_dist.export.reencode import reencode_bundle
from ham_dist.export.writer import Description, write_bundle
from ham_dist.models.registry import build_interaction
from tests.support.earlier_version import unpack
from tests.support.live_models import chunks
from tests.support.model_settings import model_settings
from tests.support.raw_movielens import write_raw_movielens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw records, the data prepared from them, and a bundle of an untrained FM on it."""
    folder = tmp_path_factory.mktemp("movielens")
    raw, recipe = write_raw_movielens(folder / "raw", ratings=600), load_recipe("movielens-1m")
    manifest = prepare(recipe, raw, folder / "data")
    fields = [
        FieldEntry(
            name=field.name, num_embeddings=field.rows, embedding_dim=3, multi_valued=field.multi_valued
        )
        for field in manifest.fields
    ]
    settings = model_settings("fm", lift_dim=4, first_order="table")
    tables, first_order = (
        {field.name: torch.randn(field.num_embeddings, dim) / 3 for field in fields} for dim in (3, 1)
    )
    write_bundle(
        folder / "bundle",
        Description(fields, settings, recipe=manifest.recipe),
        chunks=chunks(tables),
        first_order_chunks=chunks(first_order),
        dense=build_interaction(settings, dict.fromkeys(tables, 3)).state_dict(),
        vocabulary=folder / "data" / "vocabulary",
    )
    return folder


def of_split(bundle: Bundle, data: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    split = open_split(data, Manifest.load(data), name)
    batch = split.take(split.rows)
    with torch.no_grad():
        return bundle.model()(ids_of(batch)), batch.labels


def test_labels_of_raw_records_follow_the_recipe(folder: Path) -> None:
    bundle = open_bundle(folder / "bundle")
    records = labelled_records(bundle, str(folder / "raw"))
    labels = torch.cat([labels for _, labels in records.batches()])
    prepared = [of_split(bundle, folder / "data", name) for name in SPLITS]
    assert Manifest.load(folder / "data").rows_dropped > 0, "ratings of 3 have no label"
    for label in (0, 1):
        wanted = torch.cat([logits[of_split == label] for logits, of_split in prepared]).sort().values
        found = records.logits[labels == label].sort().values
        assert len(found) > 100
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_prepared_records_are_those_of_the_split(folder: Path) -> None:
    bundle = open_bundle(folder / "bundle")
    records = labelled_records(bundle, str(folder / "data" / "validation"))
    logits, labels = of_split(bundle, folder / "data", "validation")
    torch.testing.assert_close(records.logits, logits)
    assert torch.equal(torch.cat([labels for _, labels in records.batches()]), labels)
    with pytest.raises(DataError, match=r"test: is a test split, by which nothing may be chosen"):
        labelled_records(bundle, str(folder / "data" / "test"))


def test_the_new_bundle_has_all_of_the_old_one(folder: Path, tmp_path: Path) -> None:
    bundle, raw = folder / "bundle", str(folder / "raw")
    report = reencode_bundle(bundle, tmp_path / "small", "fp32", raw, table_bytes=1200, tolerance=1)
    old, new = verify_files(bundle).manifest, verify_files(tmp_path / "small").manifest
    assert new.table_bytes <= 1200 < old.table_bytes
    assert new.verified == report
    changed = {"tables", "first_order", "files", "verified"}
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
    same = old.files.keys() - {
        piece.file for table in (*old.tables, *old.first_order) for piece in table.files
    }
    assert same > set(old.vocabulary.values())
    assert all(new.files[name] == old.files[name] for name in same)
    for tables, decoded in ((old.tables, old.first_order), (new.tables, new.first_order)):
        assert [table.field for table in tables] == [table.field for table in decoded]
    with pytest.raises(BundleError, match=r"int4 tables change the AUC of \d+ records of .*raw"):
        reencode_bundle(bundle, tmp_path / "no", "int4", raw, tolerance=0)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_run_of_version_0_1_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unpack(tmp_path))
    Path("data").rename("elsewhere")
    with pytest.raises(CheckpointError, match="--records FILE, labelled records"):
        export_run(Path("finished"), Path("int8"), "int8")
    report = export_run(
        Path("finished"), Path("int8"), "int8", records="elsewhere/validation", tolerance=0.01
    )
    assert report["rows"] == Manifest.load("elsewhere").splits["validation"].rows
    bundle = verify_files("int8")
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.format_version == 3
    before, _ = of_split(open_bundle("finished/bundle"), Path("elsewhere"), "validation")
    after, _ = of_split(bundle, Path("elsewhere"), "validation")
    moved = (torch.sigmoid(after) - torch.sigmoid(before)).abs().double()
    assert report["max_difference"] == pytest.approx(moved.max().item(), abs=1e-6)
