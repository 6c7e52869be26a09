"""Prepared data that the tests of this room share; nothing writes into it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ham_dist.data.format.manifest import Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import Recipe, load_recipe
from tests.support.raw_movielens import write_raw_movielens
from tests.support.real_data import REAL


@pytest.fixture(scope="session", autouse=True)
def short_lived_java() -> Iterator[None]:
    """Options that save nearly half of Spark's processor time in the seconds for which a test needs it."""
    options = f"{os.environ.get('JDK_JAVA_OPTIONS', '')} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", options.strip())
        yield


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("movielens-1m")


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files of the small MovieLens."""
    return write_raw_movielens(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def prepared(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small MovieLens, prepared in several shards."""
    out = tmp_path_factory.mktemp("prepared") / "small"
    prepare(recipe, raw, out, rows_per_shard=700)
    return out


@pytest.fixture(scope="session")
def manifest(prepared: Path) -> Manifest:
    return Manifest.load(prepared)


@pytest.fixture(scope="session")
def real(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MovieLens-1M, prepared."""
    if not REAL.is_dir():
        pytest.skip(f"no MovieLens-1M in {REAL}")
    out = tmp_path_factory.mktemp("real") / "movielens-1m"
    prepare(recipe, REAL, out)
    return out
