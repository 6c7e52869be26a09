"""Nothing is written into a bundle: its files are mapped, and its manifest names all of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ham_dist.errors import BundleError
from ham_dist.export.delta import apply_delta, write_delta
from ham_dist.export.packages.write import write_package
from ham_dist.export.writer import open_folder
from tests.support.raw_bundle import RECIPE, write_raw_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


def open_bundle_folder(_: Path, out: Path) -> None:
    with open_folder(out):
        raise AssertionError("a folder inside the bundle")


@pytest.mark.parametrize("place", ["new", "tables/new"])
@pytest.mark.parametrize(
    "write",
    [
        open_bundle_folder,
        lambda bundle, out: write_package(bundle, "onnx", out),
        lambda bundle, out: write_delta(bundle, bundle, out),
    ],
)
def test_a_bundle_gets_no_further_files(
    bundle: Path, write: Callable[[Path, Path], object], place: str
) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(BundleError, match=r"new: is inside the bundle .*Give a folder outside of it"):
        write(bundle, bundle / place)
    assert sorted(bundle.rglob("*")) == before


def test_a_delta_is_not_applied_into_a_bundle(bundle: Path, tmp_path: Path) -> None:
    write_delta(bundle, bundle, tmp_path / "delta")
    with pytest.raises(BundleError, match="is inside the bundle"):
        apply_delta(bundle, tmp_path / "delta", bundle / "new")


def test_other_folders_with_a_manifest_may_hold_bundles(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a page"}', encoding="utf-8")
    write_delta(bundle, bundle, tmp_path / "delta")
