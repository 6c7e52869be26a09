"""Scoring: prepared ids and raw values in, one probability a record out, without TorchRec."""

import gzip
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ham_dist.data.format.manifest import FORMAT_VERSION, DataField, StoredFile
from ham_dist.data.format.manifest import Manifest as DataManifest
from ham_dist.errors import BundleError, DataError
from ham_dist.export import scorer
from ham_dist.export.bundle import open_bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import UnknownShares
from ham_dist.export.records import read_records
from ham_dist.export.scorer import score
from ham_dist.export.writer import Description, write_bundle
from tests.support.live_models import ROWS, chunks, export, live_model, some_ids
from tests.support.raw_bundle import RECIPE, write_raw_bundle

RECORDS = 29


def as_lists(ids: Ids) -> list[Any]:
    if isinstance(ids, torch.Tensor):
        return ids.tolist()
    values, offsets = ids
    return [values[start:end].tolist() for start, end in pairwise(offsets)]


def prepared_table(ids: dict[str, Ids]) -> pa.Table:
    types = {field: pa.list_(pa.int32()) if field == "genres" else pa.int32() for field in ids}
    # Columns stand in another order than the model's, between others.
    columns = {
        field: pa.array(as_lists(ids[field]), types[field]) for field in ("genres", "age", "gone", "user")
    }
    return pa.table({"label": pa.array([0] * RECORDS, pa.int8()), **columns})


def read(path: Path) -> list[float]:
    if path.suffix == ".parquet":
        return pq.read_table(path)["probability"].to_pylist()
    lines = path.read_text().splitlines()
    if path.suffix == ".csv":
        assert lines.pop(0) == "probability"
    return [float(line) for line in lines]


def assert_equal(path: Path, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(read(path)), expected, rtol=0, atol=1e-6)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of a model that takes ids without a vocabulary."""
    export(live_model("autoint"), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def raw_bundle(tmp_path: Path) -> Path:
    return write_raw_bundle(tmp_path, RECIPE)


@pytest.mark.parametrize("block_rows", [1, 10, 1000])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_prepared_file(tmp_path: Path, bundle: Path, suffix: str, block_rows: int) -> None:
    ids = some_ids(RECORDS)
    pq.write_table(prepared_table(ids), tmp_path / "part-00000.parquet", row_group_size=7)
    assert (
        score(bundle, tmp_path / "part-00000.parquet", tmp_path / f"out{suffix}", block_rows=block_rows).rows
        == RECORDS
    )
    assert_equal(tmp_path / f"out{suffix}", live_model("autoint").probabilities(ids))


def test_float32_survives_text(tmp_path: Path, bundle: Path) -> None:
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "in.parquet")
    for suffix in ("txt", "parquet"):
        score(bundle, tmp_path / "in.parquet", tmp_path / f"out.{suffix}")
    assert torch.equal(torch.tensor(read(tmp_path / "out.txt")), torch.tensor(read(tmp_path / "out.parquet")))


def write_data_manifest(
    data: Path, bundle: Path, changed: str | None = None, recipe: dict[str, Any] | None = None
) -> None:
    """The manifest of prepared data with the vocabularies of `bundle`, except that of the field `changed`."""
    manifest = open_bundle(bundle).manifest
    fields = []
    for field in manifest.fields:
        sha256 = "0" * 64 if field.name == changed else manifest.files[manifest.vocabulary[field.name]].sha256
        stored = StoredFile(
            file=f"vocabulary/{field.name}.parquet", rows=field.num_embeddings - 1, bytes=1, sha256=sha256
        )
        fields.append(
            DataField(
                name=field.name, rows=field.num_embeddings, multi_valued=field.multi_valued, vocabulary=stored
            )
        )
    DataManifest(
        format_version=FORMAT_VERSION, name="test", recipe=recipe, settings=None, seed=0, rows_per_shard=1,
        fields=tuple(fields), splits={}, rows_in=0, rows_dropped=0, raw=(), engine={}, truth=None,
    ).save(data)  # fmt: skip


def test_ids_of_another_vocabulary_are_refused(tmp_path: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    field = open_bundle(raw_bundle).model().read_fields[0]
    write_data_manifest(tmp_path / "data", raw_bundle, changed=field)
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "data" / "test" / "part-00000.parquet")
    with pytest.raises(DataError, match=rf"other meanings than the bundle's: {field} \(another vocabulary\)"):
        score(raw_bundle, tmp_path / "data" / "test", tmp_path / "out.txt")


def test_the_data_is_compared_whatever_values_are_announced(tmp_path: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    shard = tmp_path / "data" / "test" / "part-00000.parquet"
    pq.write_table(prepared_table(some_ids(RECORDS)), shard)
    write_data_manifest(tmp_path / "data", raw_bundle, changed="user")
    with pytest.raises(DataError, match="another vocabulary"):
        score(raw_bundle, shard, tmp_path / "out.txt", values="ids")
    write_data_manifest(tmp_path / "data", raw_bundle)
    score(raw_bundle, shard, tmp_path / "out.txt", values="ids")
    with pytest.raises(DataError, match="is prepared data, which holds ids"):
        score(raw_bundle, shard, tmp_path / "out.txt", values="raw")


def test_rows_are_compared_without_a_vocabulary(tmp_path: Path, bundle: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    write_data_manifest(tmp_path / "data", raw_bundle)
    path = tmp_path / "data" / "manifest.json"
    shard = tmp_path / "data" / "test" / "part-00000.parquet"
    pq.write_table(prepared_table(some_ids(RECORDS)), shard)
    score(bundle, shard, tmp_path / "out.txt")
    path.write_text(path.read_text().replace('"rows": 11', '"rows": 12'))
    with pytest.raises(DataError, match=r"user \(12 rows, the bundle has 11\)"):
        score(bundle, shard, tmp_path / "out.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"hash": False}, "recipe with hash = False, the bundle's has True"),
        ({"max_rows": 12}, "recipe with max_rows = 12, the bundle's has 11"),
        ({"missing": "own"}, "recipe with missing = 'own', the bundle's has 'unknown'"),
        ({"column": "other"}, "recipe with column = 'other', the bundle's has 'user'"),
        ({"null": ["NULL"]}, r"recipe with format.null = \['NULL'\], the bundle's has \[\]"),
        ({"min_count": 3}, None),
    ],
)
def test_hashed_fields_are_compared_by_their_settings(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    """Their vocabulary files are empty, and so the same whatever the hashes are."""
    hashed = {"kind": "categorical", "hash": True, "max_rows": ROWS["user"]}
    recipe = {**RECIPE, "fields": {**RECIPE["fields"], "user": hashed}}
    bundle = write_raw_bundle(tmp_path, recipe)
    null = {"null": change.pop("null")} if "null" in change else {}
    columns = [
        change["column"] if "column" in change and name == "user" else name
        for name in RECIPE["samples"]["columns"]
    ]
    prepared = {
        **recipe,
        "format": {**RECIPE["format"], **null},
        "samples": {**RECIPE["samples"], "columns": columns},
        "fields": {**recipe["fields"], "user": {**hashed, **change}},
    }
    (tmp_path / "data" / "test").mkdir(parents=True)
    write_data_manifest(tmp_path / "data", bundle, recipe=prepared)
    shard = tmp_path / "data" / "test" / "part-00000.parquet"
    pq.write_table(prepared_table(some_ids(RECORDS)), shard)
    if message is None:
        assert score(bundle, shard, tmp_path / "out.txt").rows == RECORDS
        return
    with pytest.raises(DataError, match=message):
        score(bundle, shard, tmp_path / "out.txt")


def test_prepared_folder_in_the_order_of_its_parts(tmp_path: Path, raw_bundle: Path) -> None:
    ids = some_ids(RECORDS)
    table = prepared_table(ids)
    folder = tmp_path / "data" / "test"
    folder.mkdir(parents=True)
    write_data_manifest(tmp_path / "data", raw_bundle)
    for number, (start, end) in enumerate([(0, 20), (20, 20), (20, RECORDS)]):
        pq.write_table(table.slice(start, end - start), folder / f"part-{number:05d}.parquet")
    expected = live_model("deepfm").probabilities(ids)
    score(raw_bundle, folder, tmp_path / "out.txt")
    assert_equal(tmp_path / "out.txt", expected)
    score(raw_bundle, folder / "part-00000.parquet", tmp_path / "out.txt")
    assert_equal(tmp_path / "out.txt", expected[:20])
    with pytest.raises(DataError, match=r"several splits. Give one of them: .*data/test"):
        score(raw_bundle, tmp_path / "data", tmp_path / "out.txt")


def flip_a_bit_of_an_id(path: Path, table: pa.Table, field: str) -> None:
    """Writes `table` as plain numbers with page checksums, and changes the last id of `field`.

    The new id is valid too.
    """
    ids = table[field].combine_chunks().to_numpy().tobytes()
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    assert content.count(ids) == 1
    content[content.find(ids) + len(ids) - 4] ^= 1
    path.write_bytes(content)
    assert pq.read_table(path)[field].to_pylist() != table[field].to_pylist(), "no other check finds it"


def test_a_flipped_bit_in_prepared_ids_is_refused(tmp_path: Path, bundle: Path) -> None:
    flip_a_bit_of_an_id(tmp_path / "in.parquet", prepared_table(some_ids(RECORDS)), "user")
    with pytest.raises(DataError, match=r"in\.parquet: damaged: .*CRC"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_a_flipped_bit_in_raw_records_is_refused(tmp_path: Path, raw_bundle: Path) -> None:
    ids = some_ids(RECORDS)
    users = pa.array(range(1000, 1000 + RECORDS), pa.int32())
    table = pa.table({**raw_values(ids, "never seen"), "user": users})
    flip_a_bit_of_an_id(tmp_path / "in.parquet", table, "user")
    with pytest.raises(DataError, match=r"in\.parquet: .*CRC"):
        score(raw_bundle, tmp_path / "in.parquet", tmp_path / "out.txt")


def raw_values(ids: dict[str, Ids], unknown: str) -> dict[str, list[Any]]:
    def value(field: str, id: int) -> str:
        return f"{field[0]}{id}" if id else unknown

    return {
        field: [
            [value(field, id) for id in cell] if isinstance(cell, list) else value(field, cell)
            for cell in as_lists(of_field)
        ]
        for field, of_field in ids.items()
    }


def with_unknown_for_empty(ids: dict[str, Ids]) -> dict[str, Ids]:
    """Ids as `prepare` encodes them: a cell without values has the single id 0."""
    cells = [cell or [0] for cell in as_lists(ids["genres"])]
    offsets = torch.tensor([0, *map(len, cells)]).cumsum(0)
    return {**ids, "genres": (torch.tensor([id for cell in cells for id in cell]), offsets)}


def test_raw_records(tmp_path: Path, raw_bundle: Path) -> None:
    """CSV, Parquet with lists, and the files that the recipe names give what their ids give."""
    ids = some_ids(RECORDS)
    expected = live_model("deepfm").probabilities(with_unknown_for_empty(ids))
    values = raw_values(ids, unknown="never seen")
    pq.write_table(pa.table(values), tmp_path / "raw.parquet")
    flat = {**values, "genres": ["|".join(cell) for cell in values["genres"]]}
    (tmp_path / "raw").mkdir()
    unlabelled = [
        ",".join(row)
        for row in zip(*(flat[field] for field in ("user", "gone", "genres", "age")), strict=True)
    ]
    text = "".join(f"{line},5\n" for line in unlabelled)
    (tmp_path / "raw" / "films.csv").write_text(text)
    (tmp_path / "raw.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "unlabelled").write_text("\n".join(unlabelled))
    for name in ("raw.parquet", "raw", "raw.tsv.gz", "unlabelled"):
        assert score(raw_bundle, tmp_path / name, tmp_path / "out.txt", block_rows=10).rows == RECORDS
        assert_equal(tmp_path / "out.txt", expected)


def test_whole_numbers_could_be_both(tmp_path: Path, raw_bundle: Path) -> None:
    ids = some_ids(RECORDS)
    pq.write_table(prepared_table(ids), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"ids or raw values\n  Give --values ids or --values raw"):
        score(raw_bundle, tmp_path / "in.parquet", tmp_path / "out.txt")
    score(raw_bundle, tmp_path / "in.parquet", tmp_path / "out.txt", values="ids")
    assert_equal(tmp_path / "out.txt", live_model("deepfm").probabilities(ids))
    score(
        raw_bundle, tmp_path / "in.parquet", tmp_path / "out.txt", values="raw"
    )  # none of these numbers is in the vocabulary
    assert len(set(read(tmp_path / "out.txt"))) == 1


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("user", [0] * 20 + [11] + [0] * 8, r"record 20 .*user = 11: its ids go from 0 to 10"),
        ("user", [0] * 28 + [-1], r"record 28 .*user = -1"),
        (
            "genres",
            [[]] * 3 + [[1, 2], [], [3, 7]] + [[0]] * 23,
            r"record 5 .*genres = 7: its ids go from 0 to 6",
        ),
        ("age", [1] * 15 + [None] + [1] * 13, r"record 15 \(from 0\): age lacks a value\n  Write 0"),
        ("genres", [[1, None]] + [[]] * 28, r"record 0 \(from 0\): genres lacks a value"),
        ("age", ["young"] * 29, r"column age is string, expected ids: integers"),
        ("age", [1.5] * 29, r"column age is double"),
        ("age", None, r"has no column age"),
        (
            "age",
            [[1]] * 12 + [[1, 2]] + [[1]] * 16,
            r"record 12 \(from 0\): age has 2 ids; the model was trained with one",
        ),
        ("age", [[1]] * 28 + [[]], r"record 28 \(from 0\): age has 0 ids"),
    ],
)
def test_refuses_what_is_no_id(
    tmp_path: Path, bundle: Path, column: str, cells: Sequence[Any] | None, message: str
) -> None:
    table = prepared_table(some_ids(RECORDS)).drop_columns(column)
    if cells is not None:
        table = table.append_column(column, pa.array(cells))
    pq.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "out.txt").write_text("earlier")
    with pytest.raises(DataError, match=message):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt", block_rows=10)
    assert (tmp_path / "out.txt").read_text() == "earlier"
    assert not list(tmp_path.glob("*.partial"))


def test_refuses_what_cannot_be_read_or_written(tmp_path: Path, bundle: Path, raw_bundle: Path) -> None:
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "in.parquet")
    (tmp_path / "bad.parquet").write_text("no Parquet")
    (tmp_path / "in.csv").write_text("user\n1\n")
    for source, message in [
        ("bad.parquet", "not a Parquet file"),
        ("none.parquet", "no such file"),
        ("in.csv", "is not Parquet. The bundle has no vocabulary"),
    ]:
        with pytest.raises(DataError, match=message):
            score(bundle, tmp_path / source, tmp_path / "out.txt")
    with pytest.raises(DataError, match="line 1: 1 column; expected 5"):
        score(raw_bundle, tmp_path / "in.csv", tmp_path / "out.txt")
    with pytest.raises(BundleError, match="no vocabulary"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt", values="raw")
    with pytest.raises(BundleError, match=r"give a name that ends in \.txt, \.csv, \.parquet"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.xls")
    with pytest.raises(
        BundleError,
        match=r"out.txt: cannot be written: No such file or directory. Create the folder .*/nowhere first",
    ):
        score(bundle, tmp_path / "in.parquet", tmp_path / "nowhere" / "out.txt")


def test_refuses_a_custom_bundle(tmp_path: Path) -> None:
    live = live_model()
    fields = [field for field in live.fields if field.embedding_dim]
    write_bundle(
        tmp_path / "bundle", Description(fields, None), chunks=chunks(live.tables), dense={"w": torch.ones(1)}
    )
    with pytest.raises(BundleError, match=r"(?s)kind = 'custom'.*open_bundle"):
        score(tmp_path / "bundle", tmp_path / "in.parquet", tmp_path / "out.txt")


WITHOUT_TORCHREC = """
import sys
for name in ("torchrec", "fbgemm_gpu"):
    sys.modules[name] = None  # importing it raises
from ham_dist.export import scorer
from ham_dist.export.manifest import UnknownShares
from ham_dist.export.records import read_records
from ham_dist.export.scorer import score
for source in sys.argv[2:]:
    print(score(sys.argv[1], source, sys.argv[1] + ".txt").rows)
above = ("ham_dist.distributed", "ham_dist.embedding", "ham_dist.training", "duckdb", "ibis")
print(sorted(name for name in sys.modules if name.startswith(above)))
"""


def test_needs_neither_torchrec_nor_ranks_nor_duckdb(tmp_path: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    write_data_manifest(tmp_path / "data", raw_bundle)
    ids, raw = tmp_path / "data" / "test" / "part-00000.parquet", tmp_path / "raw.parquet"
    pq.write_table(prepared_table(some_ids(RECORDS)), ids)
    pq.write_table(pa.table(raw_values(some_ids(RECORDS), unknown="")), raw)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCHREC, str(raw_bundle), str(ids), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{RECORDS}\n{RECORDS}\n[]\n", "")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_id_stands_in_front_of_each_probability(tmp_path: Path, raw_bundle: Path, suffix: str) -> None:
    (tmp_path / "in").write_text('u1,g1,g2|g3,a1\n"u2",,,"""\nu3,g2,g1,a2\n')
    out = tmp_path / f"out{suffix}"
    assert score(raw_bundle, tmp_path / "in", out, id_column="user", block_rows=2).rows == 3
    score(raw_bundle, tmp_path / "in", tmp_path / "plain.txt")
    probabilities = read(tmp_path / "plain.txt")
    if suffix == ".csv":
        lines = out.read_text().splitlines()
        assert lines[0] == "user,probability"
        assert [line.rpartition(",")[0] for line in lines[1:]] == ["u1", '"""u2"""', "u3"]
        assert [float(line.rpartition(",")[2]) for line in lines[1:]] == probabilities
    else:
        assert pq.read_table(out).column_names == ["user", "probability"]
        assert pq.read_table(out)["user"].to_pylist() == ["u1", '"u2"', "u3"]
        assert [float(f"{one:.9g}") for one in read(out)] == probabilities


def test_an_id_of_parquet_keeps_its_type(tmp_path: Path, bundle: Path) -> None:
    """Also with ids of fields, and where the id is such a field."""
    table = prepared_table(some_ids(RECORDS)).append_column("n", pa.array(range(RECORDS), pa.int64()))
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("n", "user", "label"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", id_column=name, block_rows=10)
        assert pq.read_table(tmp_path / "out.parquet")[name].equals(table[name])
    score(bundle, tmp_path / "in.parquet", tmp_path / "out.csv", id_column="n")
    assert (tmp_path / "out.csv").read_text().splitlines()[29].startswith("28,")
    for out, name, message in (
        ("out.txt", "n", "For --id n, give .csv or .parquet"),
        ("out.csv", "probability", "is the name of the output.s column of probabilities"),
    ):
        with pytest.raises(BundleError, match=message):
            score(bundle, tmp_path / "in.parquet", tmp_path / out, id_column=name)
    for name, message in (("m", "has no column m; it has"), ("genres", "which .csv cannot represent")):
        with pytest.raises(DataError, match=message):
            score(bundle, tmp_path / "in.parquet", tmp_path / "out.csv", id_column=name)
    pq.write_table(table.slice(0, 0), tmp_path / "in.parquet")
    assert score(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", id_column="n").rows == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["n", "probability"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, bundle: Path) -> None:
    table = prepared_table(some_ids(RECORDS))
    pq.write_table(
        pa.table([*table.columns, table["age"]], names=[*table.column_names, "age"]), tmp_path / "in.parquet"
    )
    with pytest.raises(DataError, match="has 2 columns called age"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt")


def test_one_id_in_a_list_is_one_id(tmp_path: Path, bundle: Path) -> None:
    table = prepared_table(some_ids(RECORDS))
    lists = pa.array([[one] for one in table["age"].to_pylist()], pa.list_(pa.int32()))
    for name, age in (("plain", table["age"]), ("lists", lists)):
        pq.write_table(table.drop_columns("age").append_column("age", age), tmp_path / f"{name}.parquet")
        score(bundle, tmp_path / f"{name}.parquet", tmp_path / f"{name}.txt")
    assert (tmp_path / "lists.txt").read_text() == (tmp_path / "plain.txt").read_text()


def test_what_is_read_is_never_replaced(tmp_path: Path, raw_bundle: Path) -> None:
    """Neither by its name, nor through a link, nor by a new file in its folder."""
    content = "u1,g1,g2,a1\n"
    raw = tmp_path / "raw"
    raw.mkdir()
    (tmp_path / "elsewhere.csv").write_text(content)
    (raw / "films.csv").symlink_to(tmp_path / "elsewhere.csv")
    (tmp_path / "in.csv").write_text(content)
    (tmp_path / "soft.csv").symlink_to(tmp_path / "in.csv")
    os.link(tmp_path / "in.csv", tmp_path / "hard.csv")
    for source, out in (
        ("in.csv", "in.csv"),
        ("in.csv", "soft.csv"),
        ("soft.csv", "in.csv"),
        ("in.csv", "hard.csv"),
        ("in.csv", "raw/../in.csv"),
        ("raw", "raw/out.csv"),
        ("raw", "raw/films.csv"),
        ("raw", "elsewhere.csv"),
        ("in.csv", "raw_bundle/out.csv"),
        ("in.csv", "raw_bundle/vocabulary/user.parquet"),
    ):
        with pytest.raises(BundleError, match="Give another file for the probabilities"):
            score(raw_bundle, tmp_path / source, tmp_path / out)
    for name in ("in.csv", "elsewhere.csv"):
        assert (tmp_path / name).read_text() == content
    open_bundle(raw_bundle)
    assert not (raw / "out.csv").exists()


def test_other_files_are_left_alone(tmp_path: Path, bundle: Path) -> None:
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "in.parquet")
    (tmp_path / "out.txt.partial").write_text("mine")
    score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt")
    assert (tmp_path / "out.txt.partial").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle",
        "in.parquet",
        "out.txt",
        "out.txt.partial",
    ]


def test_two_scores_into_one_file_do_not_mix(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts when the first has written half of its records."""
    for name, records in (("long", RECORDS), ("short", 7)):
        pq.write_table(prepared_table(some_ids(RECORDS)).slice(0, records), tmp_path / f"{name}.parquet")
    inner: list[str] = []

    def with_another(*arguments: Any) -> Any:
        blocks = read_records(*arguments)
        yield next(blocks)
        monkeypatch.setattr(scorer, "read_records", read_records)
        score(bundle, tmp_path / "short.parquet", tmp_path / "out.txt")
        inner.append((tmp_path / "out.txt").read_text())
        yield from blocks

    monkeypatch.setattr(scorer, "read_records", with_another)
    score(bundle, tmp_path / "long.parquet", tmp_path / "out.txt", block_rows=10)
    assert len(inner[0].splitlines()) == 7
    assert len(read(tmp_path / "out.txt")) == RECORDS


def test_a_probability_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    """Weights that are finite, but so large that a sum of them is not."""
    live = live_model("autoint")
    live.tables["user"][3:] = 3e38
    export(live, tmp_path / "bundle")
    ids = some_ids(RECORDS)
    ids["user"] = torch.tensor([0] * 12 + [5] + [0] * 16)
    pq.write_table(prepared_table(ids), tmp_path / "in.parquet")
    with pytest.raises(BundleError, match=r"the probability of record 12 \(from 0\) is not finite"):
        score(tmp_path / "bundle", tmp_path / "in.parquet", tmp_path / "out.txt", block_rows=10)
    assert not (tmp_path / "out.txt").exists()


def test_unknown_values_are_counted_and_compared(tmp_path: Path) -> None:
    shares = UnknownShares(split="validation", rows=100, shares={"user": 0.3, "genres": 0.05, "age": 0.0})
    bundle = write_raw_bundle(tmp_path, RECIPE, unknown=shares)
    (tmp_path / "in").write_text("u1.0,,g1 g2,a1\n" * 3 + "u1,,g1|g2,a2\n")
    scored = score(bundle, tmp_path / "in", tmp_path / "out.txt")
    assert (scored.unknown.values, scored.unknown.unknown) == (
        {"user": 4, "genres": 5, "age": 4},
        {"user": 3, "genres": 3, "age": 0},
    )
    assert scored.warnings == [
        "field genres: 3 of 5 values (60.0%) are unknown (id 0), compared with 5.0% in the validation split"
    ]
    assert scored.unknown.share("user") == 0.75
    (tmp_path / "in").write_text("u1.0,,g1 g2,a1\n" * 30)
    assert [
        warning.split(":")[0] for warning in score(bundle, tmp_path / "in", tmp_path / "out.txt").warnings
    ] == [
        "field user",
        "field genres",
    ]


def test_without_shares_of_training_a_field_of_only_unknown_values_is_warned_of(
    tmp_path: Path, raw_bundle: Path
) -> None:
    (tmp_path / "in").write_text("u1.0,,g1 g2,a1\n" * 2)
    scored = score(raw_bundle, tmp_path / "in", tmp_path / "out.txt")
    assert scored.expected is None
    assert scored.warnings == [
        f"field {name}: all 2 values are unknown (id 0)" for name in ("user", "genres")
    ]
