"""Every kind of field and split, both engines, training and scoring: the same ids as in plain Python."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.data.engines.base import Machine
from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.raw import blocks
from ham_dist.errors import DataError
from tests.support.encoded import encode_raw
from tests.support.prepared import folder_bytes, tenth
from tests.support.raw_everything import (
    COLUMNS,
    DAYS,
    SETTINGS,
    everything,
    ids,
    read_everything,
    vocabulary,
    write_everything,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "everything"
    prepare(everything(), raw, out, rows_per_shard=200)
    return out


def stored(folder: Path, split: str) -> list[dict[str, Any]]:
    shards = Manifest.load(folder).splits[split].shards
    return [row for shard in shards for row in pq.read_table(folder / shard.file).to_pylist()]


def wanted(samples: list[dict[str, str]], known: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    return [
        {"label": int(sample["click"])} | {field: ids(field, sample, known[field]) for field in known}
        for sample in samples
    ]


def known_of(train: list[dict[str, str]]) -> dict[str, dict[str, int]]:
    return {field: vocabulary(field, train) for field in SETTINGS["fields"]}


def random_parts(samples: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """By the number of the line: each day has a header before its rows."""
    rows = len(samples) // len(DAYS)
    parts: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for place, sample in enumerate(samples):
        line = place + 1 + place // rows
        parts[SPLITS[max(tenth(line, 0) - 7, 0)]].append(sample)
    return parts


def test_every_kind_gives_what_plain_python_gives(raw: Path, prepared: Path) -> None:
    parts = random_parts(read_everything(raw))
    known = known_of(parts["train"])
    for split in SPLITS:
        assert stored(prepared, split) == wanted(parts[split], known)
    rows = Manifest.load(prepared).num_embeddings()
    assert rows["site"] == 8
    assert rows["device"] == 50
    assert len(known["city"]) == rows["city"] - 1 == 4


def test_days_are_split_whole_and_the_last_in_the_middle(raw: Path, tmp_path: Path) -> None:
    split = {"kind": "files", "train": DAYS[:2], "validation": DAYS[2:], "test": DAYS[2:]}
    prepare(everything(split=split), raw, tmp_path / "out")
    samples = read_everything(raw)
    known = known_of(samples[:600])
    assert stored(tmp_path / "out", "train") == wanted(samples[:600], known)
    assert stored(tmp_path / "out", "validation") == wanted(samples[600:750], known)
    assert stored(tmp_path / "out", "test") == wanted(samples[750:], known)


def test_blocks_and_threads_change_no_byte(
    raw: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    prepare(everything(), raw, tmp_path / "out", rows_per_shard=200, machine=Machine(threads=2, memory=10**9))
    assert folder_bytes(tmp_path / "out") == folder_bytes(prepared)


def test_scoring_gives_the_ids_of_training(raw: Path, prepared: Path, tmp_path: Path) -> None:
    samples = read_everything(raw)
    known = known_of(random_parts(samples)["train"])
    expected = [{name: one for name, one in row.items() if name != "label"} for row in wanted(samples, known)]
    assert encode_raw(everything(), prepared / "vocabulary", raw).to_pylist() == expected
    with (tmp_path / "records.csv").open("w", encoding="utf-8", newline="") as file:
        names = [*COLUMNS, "country"]
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sample | {"price": sample["price"].replace("NULL", "")} for sample in samples)
    assert encode_raw(everything(), prepared / "vocabulary", tmp_path / "records.csv").to_pylist() == expected
    table = {name: [sample.get(name) or None for sample in samples] for name in names}
    prices = [float(sample["price"]) if sample["price"] not in ("", "NULL") else None for sample in samples]
    pq.write_table(pa.table(table | {"price": prices}), tmp_path / "records.parquet", row_group_size=250)
    assert (
        encode_raw(everything(), prepared / "vocabulary", tmp_path / "records.parquet").to_pylist()
        == expected
    )


# pyspark leaves the socket of each result it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")
def test_spark_writes_the_same_bytes(raw: Path, prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed (pip install 'ham-dist[spark]')")
    if shutil.which("java") is None:
        pytest.skip("there is no Java for Spark")
    manifest = prepare(
        everything(), raw, tmp_path / "out", rows_per_shard=200, machine=Machine(engine="spark", threads=1)
    )
    found, expected = folder_bytes(tmp_path / "out"), folder_bytes(prepared)
    assert manifest.engine.keys() == {"spark", "ibis", "pyarrow"}
    assert found.pop("manifest.json") != expected.pop("manifest.json"), "the manifest names the engine"
    assert found == expected


def test_a_number_that_is_not_finite_is_no_record(prepared: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"price": [1.0, float("nan")]}), tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=r"record 1 \(from 0\): column price is nan, which is not a finite number"
    ):
        encode_raw(everything(), prepared / "vocabulary", tmp_path / "x.parquet", fields=["price"])
