"""A bundle that is not whole is refused by the name of the file."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ham_dist.errors import BundleError
from ham_dist.export.bundle import open_bundle, verify_files
from ham_dist.export.manifest import BundleManifest, read_manifest, write_manifest
from ham_dist.io.hashing import sha256_of_json
from tests.support.encoders import write_parquet_vocabulary
from tests.support.live_models import export, live_model


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    live = live_model("fm", "table")
    for field in live.fields:
        write_parquet_vocabulary(vocabulary / f"{field.name}.parquet", [field.name])
    export(
        live,
        tmp_path / "bundle",
        vocabulary=vocabulary,
        recipe={"name": "films"},
        run={"seed": 1},
    )
    return tmp_path / "bundle"


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def test_whole_is_whole(whole: Path) -> None:
    assert verify_files(whole).manifest.files.keys() == {
        path.relative_to(whole).as_posix() for path in files_of(whole)
    } - {"manifest.json"}


def test_each_flipped_byte_is_found(whole: Path) -> None:
    for path in files_of(whole):
        content = path.read_bytes()
        # The manifest vouches for itself, so each part of it is tried.
        for place in (
            range(0, len(content), 97)
            if path.name == "manifest.json"
            else [0, len(content) // 2, len(content) - 1]
        ):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BundleError, match=path.name):
                verify_files(whole)
        path.write_bytes(content)
    verify_files(whole)


def test_each_missing_or_short_file_is_named(whole: Path) -> None:
    for path in files_of(whole):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        if path.name != "manifest.json":  # which misses no more than its last line's end then
            with pytest.raises(
                BundleError, match=rf"{path.name}: {len(content) - 1} bytes, expected {len(content)}"
            ):
                open_bundle(whole)
        path.unlink()
        with pytest.raises(BundleError, match=rf"{path.name}: (missing|no such file)"):
            open_bundle(whole)
        path.write_bytes(content)
    open_bundle(whole)


def test_manifest_cut_short(whole: Path) -> None:
    path = whole / "manifest.json"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BundleError, match=r"manifest.json: damaged"):
        open_bundle(whole)


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change manifest.json and give it the checksum that fits, as somebody who means harm would."""
    content = json.loads((bundle / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(content | {"checksum": digest}))


def move_dense(target: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["vocabulary"]["user"] = target
        content["files"][target] = content["files"]["dense.safetensors"]

    return change


@pytest.mark.parametrize(
    "target",
    [
        "../secret",
        "/etc/passwd",
        "tables/../../secret",
        "..",
        "a\\..\\b",
        "C:/x",
        "tables//x",
        "./dense.safetensors",
        "a\nb",
        "x" * 256,
        "",
    ],
)
def test_paths_out_of_the_bundle_are_refused(whole: Path, target: str) -> None:
    shutil.copy(whole / "dense.safetensors", whole.parent / "secret")
    rewrite(whole, move_dense(target))
    with pytest.raises(
        BundleError, match=r"is not a relative path in this folder|is too long for a file name"
    ):
        open_bundle(whole)


def test_link_out_of_the_bundle_is_refused(whole: Path) -> None:
    (whole / "dense.safetensors").rename(whole.parent / "elsewhere")
    (whole / "dense.safetensors").symlink_to(whole.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"dense.safetensors: leads out of the bundle"):
        open_bundle(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(format_version=4),
            "format_version = 4, but this ham_dist reads versions up to 3",
        ),
        (lambda content: content.update(format="zip"), "format is 'zip'"),
        (lambda content: content.update(format_version=0), "format_version: Input should be greater than 0"),
        (lambda content: content.update(kind="custom"), "kind = 'custom' with model given"),
        (lambda content: content.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda content: content["fields"].append(content["fields"][0]), "two fields have the same name"),
        (
            lambda content: content["fields"][0].update(num_embeddings=12),
            "table 'user': num_embeddings, embedding_dim",
        ),
        (
            lambda content: content["tables"][0]["files"][0].update(first_row=2),
            "table 'user': rows 0 to 1 are missing",
        ),
        (lambda content: content["tables"][0].update(codec="zip"), "precision = 'zip': expected one of fp32"),
        (
            lambda content: content["tables"][0].update(codec="int8"),
            r"user.safetensors: tensors of another model .missing: offset, scale",
        ),
        (
            lambda content: content["tables"][0].update(codec="fp16"),
            r"user.safetensors: values is F32 \[11, 5\], expected F16 \[11, 5\]",
        ),
        (lambda content: content["tables"].pop(), "expected one for each field with columns"),
        (
            lambda content: content.update(first_order=[]),
            "first-order tables of another model .missing: age, genres, gone, user",
        ),
        (
            lambda content: content["files"].pop("dense.safetensors"),
            "lacks size and sha256 of dense.safetensors",
        ),
        (
            lambda content: content["model"].update(lift_dim=6),
            r"dense.safetensors: lift.weight is F32 \[8, 4\], expected F32 \[8, 6\]",
        ),
        (
            lambda content: content["model"].update(name="dcnv2"),
            "dense.safetensors: tensors of another model",
        ),
        (
            lambda content: content["fields"][1].update(keeps_slot=True),
            "fm keeps no slot .* but gone has one",
        ),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    whole: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(whole, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(whole)


@pytest.mark.parametrize(
    "text", ["[]", '"bundle"', '{"format": "ham_dist bundle", "x": NaN}', "{" * 100_000, "\x00"]
)
def test_text_that_is_no_manifest_is_refused(whole: Path, text: str) -> None:
    (whole / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest.json: (damaged|format is)"):
        open_bundle(whole)


def replaced(whole: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """Another safetensors file, whose size and sha256 the manifest gives."""
    save_file(tensors, whole / file)
    manifest = read_manifest(whole)
    content = (whole / file).read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(
        whole,
        BundleManifest.model_validate(
            {**manifest.model_dump(), "files": {**manifest.model_dump()["files"], file: entry}}
        ),
    )


def test_tensors_of_another_shape_are_refused(whole: Path) -> None:
    piece = read_manifest(whole).tables[0].files[0].file
    values = load_file(whole / piece)["values"]
    for tensors, message in [
        ({"values": values[:, :-1].contiguous()}, r"values is F32 \[11, 4\], expected F32 \[11, 5\]"),
        ({"values": values.double()}, r"F64 \[11, 5\], expected F32"),
        ({"other": values}, "missing: values; unknown: other"),
    ]:
        replaced(whole, piece, tensors)
        with pytest.raises(BundleError, match=f"user.safetensors.*{message}"):
            open_bundle(whole)


def test_file_that_is_no_safetensors_is_refused(whole: Path) -> None:
    replaced(whole, "dense.safetensors", {})
    content = b"not a tensor in here"
    (whole / "dense.safetensors").write_bytes(content)
    rewrite(
        whole,
        lambda manifest: manifest["files"].update(
            {"dense.safetensors": {"size": 20, "sha256": hashlib.sha256(content).hexdigest()}}
        ),
    )
    with pytest.raises(BundleError, match=r"dense.safetensors: not a safetensors file"):
        open_bundle(whole)


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ham-dist export"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="no such file"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(whole: Path, number: float) -> None:
    """One such number in a table's last row or in a dense weight makes some probabilities nan."""
    whole_manifest = read_manifest(whole)
    table, first_order = whole_manifest.tables[0], whole_manifest.first_order[0]
    for file in (table.files[-1].file, first_order.files[-1].file, "dense.safetensors"):
        tensors = load_file(whole / file)
        name = next(name for name, values in tensors.items() if values.is_floating_point())
        tensors[name].view(-1)[-1] = number
        content = (whole / file).read_bytes()
        replaced(whole, file, tensors)
        with pytest.raises(
            BundleError, match=f"{Path(file).name}: {name} holds numbers that are not finite .1 of"
        ):
            verify_files(whole)
        (whole / file).write_bytes(content)
        write_manifest(whole, whole_manifest)
    verify_files(whole)


def test_a_bundle_of_a_plug_in_model_names_the_missing_import(whole: Path) -> None:
    path = whole / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["model"]["name"] = "of_a_plug_in"
    path.write_text(json.dumps(content | {"checksum": sha256_of_json(content)}))
    with pytest.raises(BundleError, match="Import the package that registers the model") as caught:
        open_bundle(whole)
    assert "'of_a_plug_in'" in str(caught.value)
    assert "Copy the bundle again" not in str(caught.value)
