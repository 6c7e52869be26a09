"""The recipes of datasets/, on the real files where they are available, and on a few made-up lines elsewhere.

The real files may not be redistributed.
"""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import load_recipe, recipe_names
from tests.support.raw_logs import HEADS, SHARED, raw_logs


def real(name: str, folder: Path) -> Path:
    """A raw folder with the real head of the logs that the recipe `name` is for."""
    if not HEADS[name][0].is_file():
        pytest.skip(f"no {HEADS[name][0]}")
    return raw_logs(name, folder)[0]


def test_all_recipes_are_sound() -> None:
    assert recipe_names() == [
        "avazu",
        "criteo-1tb",
        "criteo-kaggle",
        "frappe",
        "movielens-1m",
        "template",
    ]
    recipes = {name: load_recipe(name) for name in recipe_names()}
    assert {name: recipe.name for name, recipe in recipes.items()} == {name: name for name in recipes}
    assert [recipes[name].min_count for name in ("avazu", "criteo-1tb", "criteo-kaggle")] == [4, 10, 10]
    assert recipes["criteo-1tb"].max_rows == 40_000_000
    assert len(recipes["criteo-1tb"].samples.files) == 24
    assert recipes["criteo-1tb"].fields == recipes["criteo-kaggle"].fields


def test_criteo_kaggle(tmp_path: Path) -> None:
    raw = real("criteo-kaggle", tmp_path / "raw")
    manifest = prepare(load_recipe("criteo-kaggle"), raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.rows_dropped, manifest.rejected.samples) == (8000, 0, 0)
    assert sum(split.positives for split in manifest.splits.values()) == 1728
    assert manifest.field_names() == [*(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    values = pq.read_table(tmp_path / "out/vocabulary/I5.parquet")["value"].to_pylist()
    assert "missing" in values
    numbers = [int(value) for value in values if value != "missing"]
    assert min(numbers) < 1 < max(numbers) <= math.floor(math.log(10**7) ** 2)
    assert 0 < min(pq.read_table(tmp_path / "out/vocabulary/C1.parquet")["count"].to_pylist()) >= 10


def test_avazu(tmp_path: Path) -> None:
    raw = real("avazu", tmp_path / "raw")
    manifest = prepare(load_recipe("avazu"), raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.rows_dropped, manifest.rejected.samples) == (8999, 0, 0)
    hours = pq.read_table(tmp_path / "out/vocabulary/hour.parquet").to_pylist()
    days = pq.read_table(tmp_path / "out/vocabulary/weekday.parquet").to_pylist()
    assert [row["value"] for row in hours] == ["00"]
    assert [row["value"] for row in days] == ["1"], "the 21st of October 2014 was a Tuesday"
    assert "id" not in manifest.field_names()


def test_frappe(tmp_path: Path) -> None:
    """The validation and test parts of the public data, joined; counts as in its description."""
    file = SHARED / "frappe" / "frappe_86582.csv.gz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "frappe.csv.gz").symlink_to(file)
    manifest = prepare(load_recipe("frappe"), raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.rows_dropped, manifest.rejected.samples) == (57_722 + 28_860, 0, 0)
    assert sum(split.positives for split in manifest.splits.values()) == 28_599
    assert len(manifest.field_names()) == 10
    values = {
        name: pq.read_table(tmp_path / f"out/vocabulary/{name}.parquet")["value"].to_pylist()
        for name in manifest.field_names()
    }
    small = {name: len(found) for name, found in values.items() if len(found) < 10}
    assert small == {"daytime": 7, "weekday": 7, "isweekend": 2, "homework": 3, "cost": 2, "weather": 9}
    assert len({value for found in values.values() for value in found}) == sum(map(len, values.values())), (
        "a value occurs in one field only"
    )


def test_criteo_1tb_is_split_by_days(tmp_path: Path) -> None:
    """Made-up days: each of 24 lines, a C1 of its own and one that all share."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for day in range(24):
        lines = [
            ["01"[row % 2], *("" if row % 3 else str(row) for _ in range(13)), f"{day:08x}", *["ab"] * 25]
            for row in range(24)
        ]
        (raw / f"day_{day}").write_text("".join("\t".join(line) + "\n" for line in lines))
    manifest = prepare(load_recipe("criteo-1tb"), raw, tmp_path / "out")
    assert {split: manifest.splits[split].rows for split in SPLITS} == {
        "train": 23 * 24,
        "validation": 12,
        "test": 12,
    }
    assert manifest.num_embeddings()["C1"] == 24, "days 0 to 22 and unknown"
    for split in ("validation", "test"):
        table = pq.read_table(tmp_path / "out" / split / "part-00000.parquet")
        assert set(table["C1"].to_pylist()) == {0}
        assert set(table["C2"].to_pylist()) == {1}
    assert Manifest.load(tmp_path / "out") == manifest
