"""Deltas: applied to the old bundle, they give every file of the new one."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.errors import BundleError
from ham_dist.export import patches
from ham_dist.export.bundle import verify_files
from ham_dist.export.delta import apply_delta, write_delta
from ham_dist.export.delta_manifest import DELTA, read_delta
from ham_dist.io.hashing import sha256_of, sha256_of_json
from ham_dist.serving import Scorer
from ham_dist.serving.server.versions import activate, active_version
from tests.support.earlier_version import unpack
from tests.support.live_models import ROWS, Live, live_model
from tests.support.raw_bundle import RECIPE, write_raw_bundle

COUNTS = ROWS | {"user": 900}
CODECS = {"user": "fp32", "gone": "fp16", "genres": "int8", "age": "int8"}


def live(counts: Mapping[str, int] = COUNTS, **changed: torch.Tensor) -> Live:
    """A model whose tables begin with the same rows, however many there are; `changed` replaces some."""
    model = live_model("deepfm", "table", counts=counts)
    for tables in (model.tables, model.first_order):
        for field in tables:
            rows, dim = tables[field].shape
            numbers = torch.arange(rows * dim, dtype=torch.float32).reshape(rows, dim)
            tables[field] = (numbers * 0.37).sin()
    return replace(model, tables=model.tables | changed)


def bundle(folder: Path, model: Live, counts: Mapping[str, int] = COUNTS, **options: Any) -> Path:
    folder.mkdir()
    options = {"recipe": RECIPE, "precision": CODECS} | options
    return write_raw_bundle(folder, options.pop("recipe"), model, counts, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parts(delta: Path) -> dict[str, Any]:
    return read_delta(delta).parts


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("old") / "old", live())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 more users, one row of user and all numbers of genres are other ones."""
    counts = COUNTS | {"user": 930}
    model = live(counts, genres=torch.randn(ROWS["genres"], 2))
    model.tables["user"][7] += 1
    return bundle(tmp_path_factory.mktemp("grown") / "new", model, counts)


def test_a_grown_bundle(old: Path, grown: Path, tmp_path: Path) -> None:
    size = write_delta(old, grown, tmp_path / "delta")
    apply_delta(old, tmp_path / "delta", tmp_path / "new")
    assert content(tmp_path / "new") == content(grown)
    verify_files(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "new"]

    found = parts(tmp_path / "delta")
    users = found["tables/user.safetensors"]
    assert (users.kind, users.rows, users.changed) == ("replace", 930, 31)
    first_order = found["first_order/user.safetensors"]
    assert (first_order.kind, first_order.changed) == ("replace", 30)
    keys = found["vocabulary/hashed.safetensors"]
    assert keys.kind == "insert"
    assert 30 <= keys.changed <= 30 + 16, "16 keys of padding at most"
    assert found["tables/genres.safetensors"].kind == "whole"
    assert found["tables/age.safetensors"].kind == "same"
    assert found["vocabulary/gone.parquet"].kind == "same"
    assert size.changed == 31 + 30 + 7, "genres is stored whole, with all its rows"
    assert size.bytes == sum(len(read) for name, read in content(tmp_path / "delta").items() if name != DELTA)
    assert size.full == sum(len(read) for name, read in content(grown).items() if name != "manifest.json")
    assert size.bytes < size.full


def test_a_patch_has_the_layout_that_its_entry_states(old: Path, grown: Path, tmp_path: Path) -> None:
    write_delta(old, grown, tmp_path / "delta")
    patch = parts(tmp_path / "delta")["tables/user.safetensors"]
    read = (tmp_path / "delta" / patch.file).read_bytes()
    new = (grown / "tables/user.safetensors").read_bytes()
    start = len(new) - 930 * 20
    assert read[: patch.head] == new[:start]
    places = np.frombuffer(read[patch.head : patch.head + 31 * 8], "<i8")
    assert places.tolist() == [7, *range(900, 930)]
    rows = b"".join(new[start + 20 * place : start + 20 * (place + 1)] for place in places)
    assert read[patch.head + 31 * 8 :] == rows


def write_users(bundle: Path, column: int, values: list[Any], **options: Any) -> None:
    """Puts a vocabulary of `user` with another column into a bundle."""
    path = bundle / "vocabulary/user.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(values)), path, **options)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest.pop("checksum")
    manifest["files"]["vocabulary/user.parquet"] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"checksum": sha256_of_json(manifest)}))


def test_pages_of_a_vocabulary_are_no_rows_of_tables(old: Path, tmp_path: Path) -> None:
    for name, count in (("first", 1), ("second", 2)):
        bundle = Path(shutil.copytree(old, tmp_path / name))
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        write_users(bundle, 2, [count, *[1] * 898], **plain)
    size = write_delta(tmp_path / "first", tmp_path / "second", tmp_path / "delta")
    pages = parts(tmp_path / "delta")["vocabulary/user.parquet"]
    assert (pages.kind, pages.changed) == ("replace", 1)
    assert size.changed == 0
    apply_delta(tmp_path / "first", tmp_path / "delta", tmp_path / "new")
    assert content(tmp_path / "new") == content(tmp_path / "second")


def test_a_delta_is_not_made_from_a_damaged_bundle(old: Path, grown: Path, tmp_path: Path) -> None:
    """It could not be applied to another copy of the bundle."""
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    path = copy / "tables/user.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"copy/tables/user\.safetensors: damaged"):
        write_delta(copy, grown, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_bundles_that_are_the_same_have_an_empty_delta(old: Path, tmp_path: Path) -> None:
    size = write_delta(old, old, tmp_path / "delta")
    assert {part.kind for part in parts(tmp_path / "delta").values()} == {"same"}
    assert (size.changed, size.bytes) == (0, (old / "manifest.json").stat().st_size)
    apply_delta(old, tmp_path / "delta", tmp_path / "new")
    assert content(tmp_path / "new") == content(old)


def test_another_scale_with_the_same_codes_changes_no_row(old: Path, tmp_path: Path) -> None:
    ages = live().tables["age"] * 2
    new = bundle(tmp_path / "folder", live(age=ages))
    write_delta(old, new, tmp_path / "delta")
    ages_part = parts(tmp_path / "delta")["tables/age.safetensors"]
    assert (ages_part.kind, ages_part.changed) == ("replace", 0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    codec=st.sampled_from(["fp32", "fp16", "int8", "int6", "int4"]),
    rows=st.integers(1, 200),
    more=st.integers(0, 70),
    changed=st.sets(st.integers(0, 199), max_size=20),
    data=st.data(),
)
def test_any_change_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    codec: str,
    rows: int,
    more: int,
    changed: set[int],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    counts = [ROWS | {"user": count} for count in (rows, rows + more)]
    before, after = (live(each) for each in counts)
    for row in changed & set(range(rows)):
        # The numbers of another row keep the scales of int8.
        after.tables["user"][row] = after.tables["user"][data.draw(st.integers(0, rows + more - 1))]
    if data.draw(st.booleans()):
        state = after.interaction.state_dict()
        state[next(iter(state))] += 1
    old, new = (
        bundle(folder / name, model, each, precision=codec)
        for name, model, each in zip(("old", "new"), (before, after), counts, strict=True)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patches, "BLOCK_BYTES", data.draw(st.sampled_from([1, 64, 1000, 1 << 24])))
        write_delta(old, new, folder / "delta")
        apply_delta(old, folder / "delta", folder / "again")
    assert content(folder / "again") == content(new)


def test_other_models_are_refused_with_all_differences(old: Path, tmp_path: Path) -> None:
    other = live_model("deepfm", "table", counts=COUNTS, dims={"user": 4, "gone": 0, "genres": 2, "age": 1})
    new = bundle(tmp_path / "folder", other, precision=CODECS | {"age": "int6"})
    with pytest.raises(BundleError) as error:
        write_delta(old, new, tmp_path / "delta")
    assert "user: kept columns 5 became 4" in str(error.value)
    assert "age: codec of tables int8 became int6" in str(error.value)
    assert "age: codec of first_order int8 became int6" in str(error.value)
    assert not (tmp_path / "delta").exists()


def test_other_settings_of_the_model_are_refused(old: Path, tmp_path: Path) -> None:
    new = bundle(tmp_path / "folder", live_model("dcnv2", counts=COUNTS))
    with pytest.raises(BundleError, match=r"model: name='deepfm'.* became name='dcnv2'"):
        write_delta(old, new, tmp_path / "delta")


def test_a_smaller_table_is_refused(old: Path, grown: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        write_delta(grown, old, tmp_path / "delta")
    assert "user: rows 930 became 900" in str(error.value)
    assert "user: 929 vocabulary values became 899" in str(error.value)


def test_ids_with_another_meaning_are_refused(old: Path, tmp_path: Path) -> None:
    genres = {"kind": "multi_valued", "separator": ";"}
    recipe = {**RECIPE, "fields": RECIPE["fields"] | {"genres": genres}}
    new = bundle(tmp_path / "folder", live(), recipe=recipe)
    with pytest.raises(BundleError, match=r"genres: separator of the recipe '\|' became ';'"):
        write_delta(old, new, tmp_path / "delta")


def test_another_value_of_an_old_id_is_refused(old: Path, tmp_path: Path) -> None:
    new = bundle(tmp_path / "folder", live())
    values = pq.read_table(new / "vocabulary/user.parquet")["value"].to_pylist()
    values[4] = "someone"
    write_users(new, 0, values)
    with pytest.raises(BundleError, match="user: the vocabulary value of id 5 'u5' became 'someone'"):
        write_delta(old, new, tmp_path / "delta")


def test_a_delta_fits_its_bundle_only(old: Path, grown: Path, tmp_path: Path) -> None:
    write_delta(old, grown, tmp_path / "delta")
    with pytest.raises(BundleError, match=r"was written for the bundle with sha256 .{12}\.\.\., but "):
        apply_delta(grown, tmp_path / "delta", tmp_path / "new")
    with pytest.raises(BundleError, match="already exists"):
        apply_delta(old, tmp_path / "delta", tmp_path / "delta")
    with pytest.raises(BundleError, match="already exists"):
        write_delta(old, grown, tmp_path / "delta")
    with pytest.raises(BundleError, match="is not a delta"):
        apply_delta(old, grown, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damage_is_found(old: Path, grown: Path, tmp_path: Path) -> None:
    """One flipped bit anywhere in a delta, or in a file of the old bundle that it reads."""
    write_delta(old, grown, tmp_path / "delta")
    for name in content(tmp_path / "delta"):
        path = tmp_path / "delta" / name
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 2}:
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=r"damaged|delta\.json"):
                apply_delta(old, tmp_path / "delta", tmp_path / "new")
        path.write_bytes(whole[:-2])  # the last byte of JSON is a line break
        with pytest.raises(BundleError, match="damaged"):
            apply_delta(old, tmp_path / "delta", tmp_path / "new")
        path.unlink()
        with pytest.raises(BundleError, match=r"cannot be read|is not a delta"):
            apply_delta(old, tmp_path / "delta", tmp_path / "new")
        path.write_bytes(whole)
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    damaged = bytearray((copy / "tables/user.safetensors").read_bytes())
    damaged[-1] ^= 1
    (copy / "tables/user.safetensors").write_bytes(damaged)
    with pytest.raises(BundleError, match=r"tables/user\.safetensors: damaged, or .*delta is"):
        apply_delta(copy, tmp_path / "delta", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 929}, "places are not those of 929 rows"),
        ({"rows": 1 << 50}, "places are not those of"),
        ({"changed": 30}, "bytes, expected"),
        ({"kind": "insert"}, "1 columns to insert"),
        ({"columns": [{"row_bytes": 20, "old_start": 1 << 40, "old_rows": 900}]}, "behind its end"),
        ({"columns": [{"row_bytes": 20, "old_start": 0, "old_rows": 800}]}, "places are not those of"),
        ({"file": "../outside"}, "not a relative path"),
        ({"file": "patches/none"}, "lacks patches/none"),
    ],
)
def test_a_hostile_entry_is_refused(
    old: Path, grown: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_delta(old, grown, tmp_path / "delta")
    path = tmp_path / "delta" / DELTA
    manifest = json.loads(path.read_text())
    manifest.pop("checksum")
    manifest["parts"]["tables/user.safetensors"] |= change
    path.write_text(json.dumps(manifest | {"checksum": sha256_of_json(manifest)}))
    with pytest.raises(BundleError, match=message):
        apply_delta(old, tmp_path / "delta", tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["delta"]


def test_the_command(old: Path, grown: Path, tmp_path: Path) -> None:
    write_delta(old, grown, tmp_path / "delta")
    arguments = ["apply-delta", str(old), str(tmp_path / "delta"), f"--out={tmp_path / 'new'}"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert content(tmp_path / "new") == content(grown)


def test_export_of_a_run_as_a_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unpack(tmp_path))

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    run("export", "finished", "--out=old", "--precision=int8", "--tolerance=0.01")
    shown = run("export", "finished", "--out=delta", "--delta-from=old", "--tolerance=0.01")
    assert f"delta: {Path('old/manifest.json').stat().st_size:,} bytes; the whole bundle has " in shown
    run("apply-delta", "old", "delta", "--out=new")
    assert content(Path("new")) == content(Path("old"))
    result = CliRunner().invoke(
        app, ["export", "finished", "--out=no", "--delta-from=old", "--precision=fp16"]
    )
    assert result.exit_code == 2
    assert "codec of tables int8 became fp16" in " ".join(result.output.split())
    assert not Path("no").exists()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["export", "finished", "--out=no", "--delta-from=old"])
    assert result.exit_code == 2
    assert "Export without torchrun" in result.output
    assert not list(Path.cwd().glob("*.ham-partial"))


def test_a_new_version_of_a_server(old: Path, grown: Path, tmp_path: Path) -> None:
    write_delta(old, grown, tmp_path / "delta")
    versions = tmp_path / "versions"
    shutil.copytree(old, versions / "v1")
    activate(versions, "v1")
    apply_delta(active_version(versions).root, tmp_path / "delta", versions / "v2")
    activate(versions, "v2")
    record = {"user": "u929", "genres": "g1", "age": "a1", "gone": "g2"}
    found, before = (Scorer(each).score(record) for each in (active_version(versions).root, versions / "v1"))
    assert found == Scorer(grown).score(record)
    assert found != before, "v1 does not know this user"
