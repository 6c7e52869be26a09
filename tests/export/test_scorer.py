"""Scoring: prepared ids and raw values in, one probability a record out, without TorchRec."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from ham_dist.data.format.manifest import FORMAT_VERSION, StoredFile
from ham_dist.data.format.manifest import FieldEntry as DataField
from ham_dist.data.format.manifest import Manifest as DataManifest
from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.compact import Ids
from ham_dist.export.scorer import score
from ham_dist.export.writer import Description, write_bundle
from tests.support.live_models import ROWS, chunks, export, live_model, some_ids

RECORDS = 29

RECIPE: dict[str, Any] = {
    "name": "films",
    "source": "this test",
    "format": {"separator": ","},
    "samples": {"file": "films.csv", "columns": ["user", "gone", "genres", "age", "rating"]},
    "label": {"column": "rating", "positive_above": 3, "negative_below": 3},
    "fields": {
        "user": {"kind": "categorical"},
        "gone": {"kind": "categorical"},
        "genres": {"kind": "multi_valued", "separator": "|"},
        "age": {"kind": "categorical"},
    },
}


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
    """Of a model that takes ids as they are."""
    export(live_model("autoint"), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def raw_bundle(tmp_path: Path) -> Path:
    """Of a model with vocabularies: `user` 7 has the raw value "u7", and so on; id 0 is unknown."""
    (tmp_path / "vocabulary").mkdir()
    for field, rows in ROWS.items():
        values = {
            "value": [f"{field[0]}{id}" for id in range(1, rows)],
            "id": range(1, rows),
            "count": [1] * (rows - 1),
        }
        types = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])
        pq.write_table(pa.table(values, schema=types), tmp_path / "vocabulary" / f"{field}.parquet")
    export(live_model("deepfm"), tmp_path / "raw_bundle", vocabulary=tmp_path / "vocabulary", recipe=RECIPE)
    return tmp_path / "raw_bundle"


@pytest.mark.parametrize("block_rows", [1, 10, 1000])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_prepared_file(tmp_path: Path, bundle: Path, suffix: str, block_rows: int) -> None:
    ids = some_ids(RECORDS)
    pq.write_table(prepared_table(ids), tmp_path / "part-00000.parquet", row_group_size=7)
    assert (
        score(bundle, tmp_path / "part-00000.parquet", tmp_path / f"out{suffix}", block_rows=block_rows)
        == RECORDS
    )
    assert_equal(tmp_path / f"out{suffix}", live_model("autoint").probabilities(ids))


def test_float32_survives_text(tmp_path: Path, bundle: Path) -> None:
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "in.parquet")
    for suffix in ("txt", "parquet"):
        score(bundle, tmp_path / "in.parquet", tmp_path / f"out.{suffix}")
    assert torch.equal(torch.tensor(read(tmp_path / "out.txt")), torch.tensor(read(tmp_path / "out.parquet")))


def write_data_manifest(data: Path, bundle: Path, changed: str | None = None) -> None:
    """The manifest of prepared data with the vocabularies of `bundle`, but for that of the field `changed`."""
    manifest = open_bundle(bundle).manifest
    fields = []
    for field in manifest.fields:
        sha256 = "0" * 64 if field.name == changed else manifest.files[manifest.vocabulary[field.name]].sha256
        stored = StoredFile(
            file=f"vocabulary/{field.name}.parquet", rows=field.rows - 1, bytes=1, sha256=sha256
        )
        fields.append(
            DataField(name=field.name, rows=field.rows, multi_valued=field.multi_valued, vocabulary=stored)
        )
    DataManifest(
        format_version=FORMAT_VERSION, name="test", recipe=None, settings=None, seed=0, rows_per_shard=1, fields=tuple(fields), splits={},
        rows_in=0, rows_dropped=0, raw=(), engine={}, truth=None,
    ).save(data)  # fmt: skip


def test_ids_of_another_vocabulary_are_refused(tmp_path: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    field = open_bundle(raw_bundle).model().read_fields[0]
    write_data_manifest(tmp_path / "data", raw_bundle, changed=field)
    pq.write_table(prepared_table(some_ids(RECORDS)), tmp_path / "data" / "test" / "part-00000.parquet")
    with pytest.raises(DataError, match=f"another vocabulary of {field} than the bundle's"):
        score(raw_bundle, tmp_path / "data" / "test", tmp_path / "out.txt")


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
    """Write `table` as plain numbers with a checksum of each page, and change the last id of `field` to another valid one."""
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
    """As preparing encodes it: a cell without values has the one id 0."""
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
    pyarrow.csv.write_csv(pa.table(flat), tmp_path / "raw.csv")
    (tmp_path / "raw").mkdir()
    lines = [
        ",".join(row)
        for row in zip(
            *(flat[field] for field in ("user", "gone", "genres", "age")), ["5"] * RECORDS, strict=True
        )
    ]
    (tmp_path / "raw" / "films.csv").write_text("\n".join(lines) + "\n")
    for name in ("raw.parquet", "raw.csv", "raw"):
        assert score(raw_bundle, tmp_path / name, tmp_path / "out.txt", block_rows=10) == RECORDS
        assert_equal(tmp_path / "out.txt", expected)


def test_whole_numbers_could_be_both(tmp_path: Path, raw_bundle: Path) -> None:
    ids = some_ids(RECORDS)
    pq.write_table(prepared_table(ids), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"ids or raw values. Say which"):
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
        ("age", [1] * 15 + [None] + [1] * 13, r"column age lacks a value in records 10 to 19"),
        ("genres", [[1, None]] + [[]] * 28, r"column genres lacks a value in records 0 to 9"),
        ("age", ["young"] * 29, r"column age is string; ids are whole numbers"),
        ("age", [1.5] * 29, r"column age is double"),
        ("age", None, r"has no column age"),
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
        ("bad.parquet", "no Parquet file"),
        ("none.parquet", "no such file"),
        ("in.csv", "the bundle takes ids"),
    ]:
        with pytest.raises(DataError, match=message):
            score(bundle, tmp_path / source, tmp_path / "out.txt")
    with pytest.raises(DataError, match="lacks the column"):
        score(raw_bundle, tmp_path / "in.csv", tmp_path / "out.txt")
    with pytest.raises(BundleError, match="no vocabulary"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.txt", values="raw")
    with pytest.raises(BundleError, match=r"give a name that ends in \.txt, \.csv, \.parquet"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "out.xls")
    with pytest.raises(BundleError, match="cannot be written: No such file or directory"):
        score(bundle, tmp_path / "in.parquet", tmp_path / "nowhere" / "out.txt")


def test_refuses_a_custom_bundle(tmp_path: Path) -> None:
    live = live_model()
    fields = [field for field in live.fields if field.width]
    write_bundle(
        tmp_path / "bundle", Description(fields, None), chunks=chunks(live.tables), dense={"w": torch.ones(1)}
    )
    with pytest.raises(BundleError, match=r"(?s)kind = 'custom'.*open_bundle"):
        score(tmp_path / "bundle", tmp_path, tmp_path / "out.txt")


WITHOUT_TORCHREC = """
import sys
for name in ("torchrec", "fbgemm_gpu"):
    sys.modules[name] = None  # importing it raises
from ham_dist.export.scorer import score
for source in sys.argv[2:]:
    print(score(sys.argv[1], source, source + ".txt"))
print(sorted(name for name in sys.modules if name.startswith(("ham_dist.distributed", "ham_dist.embedding", "ham_dist.training"))))
"""


def test_needs_neither_torchrec_nor_ranks(tmp_path: Path, raw_bundle: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    write_data_manifest(tmp_path / "data", raw_bundle)
    ids, raw = tmp_path / "data" / "test" / "part-00000.parquet", tmp_path / "raw.parquet"
    pq.write_table(prepared_table(some_ids(RECORDS)), ids)
    pq.write_table(pa.table(raw_values(some_ids(RECORDS), unknown="")), raw)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCHREC, str(raw_bundle), str(ids), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{RECORDS}\n{RECORDS}\n[]\n", "")
