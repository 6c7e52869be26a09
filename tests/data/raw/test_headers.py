"""Headers of any text, labels in words, and files that are no text."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.raw.files import header_names
from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError
from tests.support.encoded import encode_raw
from tests.support.tiny_logs import tiny_recipe, write_tiny

COLUMNS = ["user id", "城市", "101", 'a "quoted", comma', ""]
HEADER = 'click,user id,城市,101,"a ""quoted"", comma",'
FIELDS = {
    "user": {"kind": "categorical", "column": "user id"},
    "city": {"kind": "categorical", "column": "城市"},
    "c101": {"kind": "categorical", "column": "101"},
    "comma": {"kind": "categorical", "column": 'a "quoted", comma'},
}
LINES = ["1,u1,南昌,x,p,0", "0,u2,北京,y,q,1"] * 2
ITEM = {"item": {"kind": "categorical"}}


def test_columns_have_any_text_as_a_name(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", HEADER, LINES, LINES)
    manifest = prepare(tiny_recipe(COLUMNS, FIELDS, ignored={"": "an index"}), raw, tmp_path / "out")
    assert manifest.num_embeddings() == {"user": 3, "city": 3, "c101": 3, "comma": 3}
    assert pq.read_table(tmp_path / "out/vocabulary/city.parquet")["value"].to_pylist() == ["北京", "南昌"]


def test_a_header_can_be_skipped_in_training_and_in_scoring(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", "some,header", ["1,a", "0,b"] * 2, ["1,a", "0,b"] * 2)
    recipe = tiny_recipe(["item"], ITEM, format={"separator": ",", "header": "skip"})
    manifest = prepare(recipe, raw, tmp_path / "out")
    assert (manifest.rows_in, manifest.splits["validation"].rows, manifest.rejected.samples) == (8, 2, 0)
    for head, label in (("some,header", "1,"), ("header", "")):
        (tmp_path / "records.csv").write_text(f"{head}\n{label}a\n{label}b\n{label}x\n")
        ids = encode_raw(recipe, tmp_path / "out/vocabulary", tmp_path / "records.csv")
        assert ids["item"].to_pylist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("click,thing", "line 1: names the columns click, thing; the recipe has click, item\n"),
        ("click,item,item", "line 1: names the column 'item' 2 times; expected each once\n"),
        (
            "click,\x1b[31mitem",
            "line 1: names the columns click, \\x1b[31mitem; the recipe has click, item\n",
        ),
    ],
)
def test_another_header_is_refused_with_a_way_out(header: str, message: str, tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", header, ["1,a", "0,b"], ["1,a", "0,b"])
    with pytest.raises(DataError) as caught:
        prepare(tiny_recipe(["item"], ITEM), raw, tmp_path / "out")
    assert str(caught.value).startswith(f"{raw}/train.csv: {message}")
    assert 'set format.header = "skip"' in str(caught.value)


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", "click,item", ["1,a", "0,b"], ["1,a", "0,b"])
    (raw / "late.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"late\.csv: is empty; expected a header and samples"):
        prepare(tiny_recipe(["item"], ITEM), raw, tmp_path / "out")


def test_a_header_that_the_recipe_does_not_know_of(tmp_path: Path) -> None:
    raw = write_tiny(tmp_path / "raw", "click,item", ["1,a", "0,b"], ["1,a", "0,b"])
    recipe = tiny_recipe(["item"], ITEM, format={"separator": ","})
    with pytest.raises(DataError) as caught:
        prepare(recipe, raw, tmp_path / "out")
    assert "1 of 3 lines is rejected (1 not a number)" in str(caught.value)
    assert "If line 1 names the columns, set format.header = true" in str(caught.value)


def test_names_of_a_header() -> None:
    csv = Format(separator=",", quote='"')
    assert header_names(b'a,"b,c","d ""e"""', csv) == ["a", "b,c", 'd "e"']
    assert header_names(b'"a"::b', Format(separator="::")) == ['"a"', "b"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("train.parquet", "a Parquet file"), ("train.csv", "a gzip file"), ("train.zip", "a zip file")],
)
def test_a_file_that_is_no_text_is_called_what_it_is(name: str, kind: str, tmp_path: Path) -> None:
    raw = write_tiny(tmp_path, "click,item", ["1,a", "0,b"], ["1,a", "0,b"])
    (raw / "train.csv").unlink()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"click": [0, 1], "item": ["a", "b"]}), raw / name)
    else:
        (raw / name).write_bytes(
            gzip.compress(b"click,item\n1,a\n") if name.endswith(".csv") else b"PK\x03\x04\0\0\0\0"
        )
    recipe = tiny_recipe(["item"], ITEM, samples={"file": [name, "late.csv"], "columns": ["click", "item"]},
                         split={"kind": "files", "train": [name], "validation": ["late.csv"],
                                "test": ["late.csv"]})  # fmt: skip
    with pytest.raises(DataError) as caught:
        prepare(recipe, raw, tmp_path / "out")
    assert str(caught.value).startswith(f"{raw / name}: is {kind}; expected text")
    assert str(caught.value).replace("\n", "").isprintable()


def labels(tmp_path: Path, label: dict[str, Any], train: list[str]) -> tuple[list[int], int, int]:
    raw = write_tiny(
        tmp_path / "raw", "click,item", [f"{one},a" for one in train], [f"{one},a" for one in train] * 2
    )
    recipe = tiny_recipe(["item"], ITEM, label={"column": "click"} | label, max_rejected=0.5)
    manifest = prepare(recipe, raw, tmp_path / "out")
    shard = tmp_path / "out" / manifest.splits["train"].shards[0].file
    return pq.read_table(shard)["label"].to_pylist(), manifest.rows_dropped, manifest.rejected.samples


def test_labels_in_words(tmp_path: Path) -> None:
    words = {"positive": [">50K", "yes"], "negative": ["<=50K"]}
    assert labels(tmp_path, words, [">50K", "<=50K", "yes", "maybe", "", "<=50K"]) == ([1, 0, 1, 0], 3, 3)


def test_true_and_false_are_one_and_zero(tmp_path: Path) -> None:
    numbers = {"positive_above": 0.5, "negative_below": 0.5}
    assert labels(tmp_path, numbers, ["True", "false", "1", "0", "TRUE", "yes"]) == ([1, 0, 1, 0, 1], 0, 3)
