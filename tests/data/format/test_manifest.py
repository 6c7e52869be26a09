import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ham_dist.data.format.manifest import FORMAT_VERSION, Checks, Manifest, TimeCheck
from ham_dist.data.format.warnings import warnings_of
from ham_dist.data.reader.split import open_split
from ham_dist.errors import DataError


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def message_of(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        Manifest.load(folder)
    return str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def test_what_is_saved_is_loaded(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(str(tmp_path)) == manifest


def test_fields_by_what_a_model_asks_of_them(manifest: Manifest) -> None:
    several = {
        field.name: field.model_copy(update={"multi_valued": field.name == "item"})
        for field in manifest.fields
    }
    changed = manifest.model_copy(update={"fields": tuple(several.values())})
    assert changed.num_embeddings() == {field.name: field.rows for field in manifest.fields}
    assert list(changed.num_embeddings()) == changed.field_names()
    assert changed.single_valued() == set(changed.field_names()) - {"item"}


def test_no_manifest(tmp_path: Path) -> None:
    assert message_of(tmp_path / "no").startswith(
        f"{tmp_path}/no: no such folder; expected prepared data\n  Prepare it: ham-dist prepare RECIPE"
    )
    assert message_of(tmp_path).startswith(f"{tmp_path}: holds no manifest.json; expected prepared data")


def test_not_json(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"name": ')
    assert message_of(copy).startswith(f"{copy}/manifest.json: not JSON (Expecting value: line 1 column 10")
    (copy / "manifest.json").write_text("[]")
    assert message_of(copy).startswith(f"{copy}/manifest.json: holds list; expected a JSON object")
    (copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
    assert message_of(copy).startswith(f"{copy}/manifest.json: not JSON")


def test_newer_format(copy: Path) -> None:
    edit(copy, format_version=FORMAT_VERSION + 1, fields="something else")
    assert message_of(copy).startswith(
        f"{copy}/manifest.json: format_version = {FORMAT_VERSION + 1};"
        f" this ham_dist reads versions up to {FORMAT_VERSION}\n"
    )


def test_every_missing_key_is_named(copy: Path) -> None:
    edit(copy, splits="absent", seed="absent", rows_in=-1)
    lines = message_of(copy).splitlines()
    assert lines[:-1] == [
        f"{copy}/manifest.json: seed: field required",
        f"{copy}/manifest.json: splits: field required",
        f"{copy}/manifest.json: rows_in: input should be greater than or equal to 0",
    ]


def test_check_names_every_file_that_differs(copy: Path, manifest: Manifest) -> None:
    manifest.check(copy, deep=True)
    (copy / "train" / "part-00000.parquet").unlink()
    cut = copy / "test" / "part-00000.parquet"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-1])
    changed = copy / "vocabulary" / "zip.parquet"
    content = bytearray(changed.read_bytes())
    content[10] ^= 1
    changed.write_bytes(content)
    with pytest.raises(DataError) as shallow:
        manifest.check(copy, deep=False)
    assert str(shallow.value).splitlines()[:-1] == [
        f"{copy}/train/part-00000.parquet: is missing",
        f"{copy}/test/part-00000.parquet: has {size - 1:,} bytes; expected {size:,} by the manifest",
    ]
    with pytest.raises(DataError, match=r"vocabulary/zip\.parquet: its content has changed") as deep:
        manifest.check(copy, deep=True)
    assert len(str(deep.value).splitlines()) == 4


@pytest.mark.parametrize(
    "name", ["../x.parquet", "/etc/passwd", "a/../../x", "a\0b", "", "x" * 300, "a\x1b[31m"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(copy: Path, name: str) -> None:
    settings = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    settings["splits"]["train"]["shards"][0]["file"] = name
    edit(copy, **settings)
    assert "splits.train.shards.0.file" in message_of(copy)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "outside", "itself"])
def test_a_shard_that_is_not_a_file_of_the_folder_is_refused(
    copy: Path, manifest: Manifest, kind: str
) -> None:
    shard = copy / manifest.splits["train"].shards[0].file
    content = shard.read_bytes()
    shard.unlink()
    if kind == "FIFO":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    elif kind == "outside":
        (copy.parent / "outside.parquet").write_bytes(content)
        shard.symlink_to(copy.parent / "outside.parquet")
    else:
        shard.symlink_to("/dev/zero" if kind == "device" else shard.name)
    with pytest.raises(DataError, match=shard.name):
        manifest.check(copy, deep=True)
    with pytest.raises(DataError, match=shard.name):
        open_split(copy, manifest, "train")


def test_a_time_check_of_an_unknown_field_gives_no_warning(manifest: Manifest) -> None:
    checks = Checks(times={"nowhere": TimeCheck(samples=3, unknown=1, example="a")})
    assert warnings_of(manifest.model_copy(update={"checks": checks})) == warnings_of(manifest)
