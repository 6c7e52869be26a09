"""Raw files encoded for serving have the ids in the shards that prepare wrote, on real logs if they are here,
and for generated rows of every recipe in datasets/."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.data.encode.expressions import seed_key
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.mixing import LOW_32, mix
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.fields import Categorical, MultiValued, Numeric, Time
from ham_dist.data.recipe.load import Recipe, load_recipe, recipe_names
from tests.support.by_duckdb import encode_by_duckdb
from tests.support.encoded import encode_blocks, encode_raw, table_of
from tests.support.encoders import as_lists, fields_encoder, write_parquet_vocabulary
from tests.support.raw_logs import SHARED, raw_logs
from tests.support.real_data import REAL


def assert_ids_of_shards(recipe: Recipe, raw: Path, prepared: Path) -> None:
    """Compares every row of every split. The files have no line that prepare rejects."""
    blocks = list(encode_blocks(recipe, prepared / "vocabulary", raw, carried=recipe.label.column))
    ids = pa.concat_tables([table_of(block) for block in blocks])
    labels = [one for block in blocks if block.carried is not None for one in block.carried.to_pylist()]
    label, numbers = recipe.label, np.array(labels).astype(float)
    assert label.positive_above is not None
    assert label.negative_below is not None
    kept = (numbers > label.positive_above) | (numbers < label.negative_below)
    lines = np.arange(len(labels)) + recipe.format.header_lines
    tenths = mix((lines & LOW_32) ^ seed_key(0)) % 10
    manifest, seen = Manifest.load(prepared), 0
    for split, part in (("train", tenths < 8), ("validation", tenths == 8), ("test", tenths == 9)):
        shards = [pq.read_table(prepared / shard.file) for shard in manifest.splits[split].shards]
        stored = pa.concat_tables(shards).drop_columns("label").combine_chunks()
        found = ids.take(pa.array(np.flatnonzero(kept & part))).combine_chunks()
        assert found.equals(stored), split
        seen += stored.num_rows
    assert seen == kept.sum() > 0


@pytest.mark.parametrize("name", ["criteo-kaggle", "avazu"])
def test_logs(name: str, tmp_path: Path) -> None:
    raw, _ = raw_logs(name, tmp_path / "raw")
    recipe = load_recipe(name)
    prepare(recipe, raw, tmp_path / "out")
    assert_ids_of_shards(recipe, raw, tmp_path / "out")


def test_frappe(tmp_path: Path) -> None:
    source = SHARED / "frappe" / "frappe_86582.csv.gz"
    if not source.is_file():
        pytest.skip(f"no {source}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "frappe.csv.gz").symlink_to(source)
    prepare(load_recipe("frappe"), tmp_path / "raw", tmp_path / "out")
    assert_ids_of_shards(load_recipe("frappe"), tmp_path / "raw", tmp_path / "out")


def test_movielens(real: Path, recipe: Recipe) -> None:
    assert_ids_of_shards(recipe, REAL, real)


def cell(field: Any, random: np.random.Generator) -> str:
    """A cell of a field, missing now and then."""
    match field:
        case _ if random.random() < 0.1:
            return ""
        case Numeric():
            return str(random.choice([-2, 0, 1, 2, 3, round(float(random.lognormal(3, 2)), 2), int(1e9)]))
        case Time():
            digits = f"2014{random.integers(1, 14):02}{random.integers(1, 32):02}{random.integers(0, 25):02}"
            return digits[2:] if field.layout == "YYMMDDHH" else digits
        case MultiValued():
            return field.separator.join(f"t{number}" for number in random.integers(0, 9, random.integers(4)))
        case _:
            return f"v{random.integers(12)}"


def write_rows(recipe: Recipe, folder: Path, rows: int) -> list[dict[str, str]]:
    """Writes the recipe's first sample file and its side files. Returns the records, joined."""
    random = np.random.default_rng(0)
    by_column = {recipe.column(name): field for name, field in recipe.fields.items()}
    keys = {join.key for join in recipe.joins}

    def row(columns: Any) -> dict[str, str]:
        made = {column: cell(by_column.get(column), random) for column in columns}
        return made | {column: f"v{random.integers(12)}" for column in columns if column in keys}

    records = [row(recipe.samples.columns) for _ in range(rows)]
    write(recipe, folder / recipe.samples.files[0], recipe.samples.columns, records)
    for join in recipe.joins:
        # Some keys have no line.
        side = {f"v{number}": row(join.columns) | {join.key: f"v{number}"} for number in range(10)}
        write(recipe, folder / join.file, join.columns, list(side.values()))
        nothing = dict.fromkeys(join.columns, "")
        records = [nothing | side.get(record[join.key], {}) | record for record in records]
    return records


def write(recipe: Recipe, path: Path, columns: Any, rows: list[dict[str, str]]) -> None:
    format, text = recipe.format, io.StringIO()
    if format.header:
        text.write(format.separator.join(columns) + "\n")
    if format.quote:
        csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    else:
        text.writelines(format.separator.join(row[column] for column in columns) + "\n" for row in rows)
    path.write_text(text.getvalue(), encoding=format.encoding)


@pytest.mark.parametrize("name", recipe_names())
def test_generated_rows_of_every_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    records = write_rows(recipe, tmp_path, rows=40)
    for field, kind in recipe.fields.items():
        values = {record[recipe.column(field)] for record in records} | {"missing"}
        if isinstance(kind, MultiValued):
            values |= {f"t{number}" for number in range(8)}
        elif not isinstance(kind, Categorical):
            values |= {str(number) for number in range(-9, 400)} | {f"0{digit}" for digit in range(10)}
        write_parquet_vocabulary(tmp_path / f"vocabulary/{field}.parquet", sorted(values - {"", "v11"}))
    path = tmp_path / recipe.samples.files[0]
    expected = encode_by_duckdb(recipe, tmp_path / "vocabulary", path)
    assert encode_raw(recipe, tmp_path / "vocabulary", path).equals(expected)
    encoder = fields_encoder(recipe, tmp_path / "vocabulary", tmp_path / "hashed")
    assert as_lists(encoder.encode(records)) == expected.to_pydict()
    ids = [one for column in expected.to_pydict().values() for one in column]
    assert sum(one not in (0, [0]) for one in ids) > len(ids) / 2, "most values are known"
