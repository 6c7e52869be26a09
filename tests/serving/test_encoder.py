"""RecordEncoder: dicts and Arrow tables by a bundle, what it refuses, and what it loads."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.export.manifest import read_manifest, write_manifest
from ham_dist.export.unknown import UnknownCounts
from ham_dist.serving import RecordEncoder
from tests.support.earlier_version import unpack
from tests.support.encoders import as_lists
from tests.support.raw_bundle import RECIPE, write_raw_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return open_bundle(path)


RECORDS: list[dict[str, Any]] = [
    {"user": "u3", "genres": "g2|g1", "age": "a1", "gone": "g1", "rating": 5},
    {"user": None, "genres": ["g4", "nothing", "", None, "g4"], "age": "", "gone": "x"},
    {"user": "u1 ", "genres": [], "age": "a0", "gone": "g2"},
    {"user": "u9", "genres": None, "age": "a2", "gone": "g1"},
]
IDS: dict[str, list[Any]] = {
    "user": [3, 0, 0, 9],
    "genres": [[2, 1], [4, 0, 4], [0], [0]],
    "age": [1, 0, 0, 2],
}


def test_dicts_become_ids(bundle: Bundle) -> None:
    encoder = RecordEncoder(bundle)
    assert set(IDS) <= set(encoder.fields)
    found = as_lists(encoder.encode(RECORDS))
    assert {name: found[name] for name in IDS} == IDS
    for number, record in enumerate(RECORDS):
        one = as_lists(encoder.encode(record))
        assert {name: one[name] for name in IDS} == {name: [ids[number]] for name, ids in IDS.items()}
    for ids in encoder.encode(RECORDS).values():
        for part in ids if isinstance(ids, tuple) else [ids]:
            assert part.dtype == np.int64


def test_tables_become_ids_in_any_arrow_type(path: Path) -> None:
    encoder = RecordEncoder(path, ["genres", "user", "age"])
    assert encoder.fields == ["genres", "user", "age"]
    genres = pa.array([["g2", "g1"], ["g4", "nothing", "", None, "g4"], [], None], pa.large_list(pa.string()))
    table = pa.table(
        {
            "user": pa.array(["u3", None, "u1 ", "u9"]).dictionary_encode(),
            "age": pa.array(["a1", "", "a0", "a2"], pa.string_view()),
            "genres": genres,
            "other": [1.5, 2, 3, 4],
        }
    )
    assert as_lists(encoder.encode(table)) == {name: IDS[name] for name in encoder.fields}
    chunks = pa.concat_tables([table[:1], table[1:3], table[3:]])
    assert as_lists(encoder.encode(chunks)) == as_lists(encoder.encode(table))
    batch = table[1:].combine_chunks().to_batches()[0]
    assert as_lists(encoder.encode(batch)) == {name: IDS[name][1:] for name in encoder.fields}
    texts = table.set_column(2, "genres", pa.array(["g2|g1", "g4||nothing|g4", "|", ""]))
    assert as_lists(encoder.encode(texts)) == as_lists(encoder.encode(table))


def test_unknown_values_are_counted(bundle: Bundle) -> None:
    counts = UnknownCounts(list(IDS))
    counts.add(RecordEncoder(bundle).encode(RECORDS))
    assert {name: counts.share(name) for name in IDS} == {"user": 2 / 4, "genres": 3 / 7, "age": 2 / 4}


@pytest.mark.parametrize("records", [[], pa.schema([(name, pa.string()) for name in IDS]).empty_table()])
def test_no_records(records: Any, bundle: Bundle) -> None:
    ids = RecordEncoder(bundle, list(IDS)).encode(records)
    assert as_lists(ids) == {name: [] for name in IDS}
    assert ids["genres"][1].tolist() == [0]


NESTED: Any = "a1"
for _ in range(5):
    NESTED = {"more": [NESTED]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": 1.0}, "column age is double; expected text or integers\n  Write it as text."),
        ({"age": math.nan}, "column age is double; expected text or integers\n  Write it as text."),
        ({"age": True}, "column age is bool; expected text or integers\n  Write it as text."),
        ({"age": b"a1"}, "column age is binary; expected text or integers\n  Write it as text."),
        ({"age": ["a1"]}, "column age is list<item: string>; expected text or integers\n  Write it as text."),
        ({"age": {"a": 1}}, "column age is struct<a: int64>; expected text or integers\n  Write it as text."),
        (
            {"age": [None, NESTED]},
            "column age is list that is nested too deeply; expected text or integers\n  Write it as text.",
        ),
        ({"age": object}, "column age is type; expected text or integers\n  Write it as text."),
        (
            {"age": "\ud800"},
            "column age holds a lone surrogate, which is not valid text\n  Decode it as UTF-8.",
        ),
        (
            {"genres": [1.0, 2.0]},
            "column genres is list<item: double>; expected text, integers or lists of them\n"
            "  Write it as text.",
        ),
        (
            {"genres": ["g1", "\ud800"]},
            "column genres holds a lone surrogate, which is not valid text\n  Decode it as UTF-8.",
        ),
    ],
)
def test_wrong_cells_are_refused(change: dict[str, Any], message: str, bundle: Bundle) -> None:
    encoder = RecordEncoder(bundle)
    with pytest.raises(DataError) as caught:
        encoder.encode([RECORDS[0], RECORDS[1] | change])
    assert str(caught.value) == f"records: record 1 (from 0): {message}"


def test_absent_columns_are_refused_and_others_ignored(bundle: Bundle) -> None:
    encoder = RecordEncoder(bundle, ["user", "age"])
    with pytest.raises(DataError) as caught:
        encoder.encode([{"user": "u1", "age": "a1", "more": 1}, {"users": "u1"}])
    assert str(caught.value) == (
        "records: record 1 (from 0): lacks the column user (did you mean users?), age; it has users"
    )
    with pytest.raises(DataError) as caught:
        encoder.encode(pa.table({"users": ["u1"], "age": ["a1"]}))
    assert str(caught.value) == "records: lacks the column user (did you mean users?); it has users, age"
    with pytest.raises(DataError, match="records: has 2 columns called age"):
        encoder.encode(pa.table([["u1"], ["a1"], ["a2"]], names=["user", "age", "age"]))


@pytest.mark.parametrize(
    ("record", "name"), [("u1", "string"), (None, "null"), (["u1"], "list<item: string>")]
)
def test_what_is_no_record_is_refused(record: Any, name: str, bundle: Bundle) -> None:
    with pytest.raises(DataError) as caught:
        RecordEncoder(bundle).encode([RECORDS[0], record])
    assert str(caught.value) == (
        f"records: record 1 (from 0): is {name}; expected a dict of column name -> value"
    )


def test_records_may_come_from_a_generator(bundle: Bundle) -> None:
    encoder = RecordEncoder(bundle)
    records: Any = (record for record in RECORDS)
    assert as_lists(encoder.encode(records)) == as_lists(encoder.encode(RECORDS))


def test_fields_that_do_not_exist(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no field is called usr; the fields are user, "):
        RecordEncoder(bundle, ["usr"])


@pytest.fixture
def earlier(path: Path, tmp_path: Path) -> Path:
    """The bundle without its hashed vocabulary, as earlier versions wrote bundles."""
    copy = shutil.copytree(path, tmp_path / "earlier")
    manifest = read_manifest(copy)
    assert manifest.hashed_vocabulary is not None
    (copy / manifest.hashed_vocabulary).unlink()
    files = {name: entry for name, entry in manifest.files.items() if name != manifest.hashed_vocabulary}
    write_manifest(copy, manifest.model_copy(update={"hashed_vocabulary": None, "files": files}))
    return copy


def test_bundles_hold_the_hashed_vocabulary(path: Path, cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "copy")
    for file in (copy / "vocabulary").glob("*.parquet"):
        file.unlink()
    found = as_lists(RecordEncoder(copy).encode(RECORDS))
    assert {name: found[name] for name in IDS} == IDS
    assert list(cache.iterdir()) == []
    (copy / "vocabulary/hashed.safetensors").unlink()
    with pytest.raises(BundleError, match=r"vocabulary/hashed.safetensors: missing"):
        RecordEncoder(copy)


def test_a_vocabulary_is_built_once(earlier: Path, path: Path, cache: Path) -> None:
    first = RecordEncoder(earlier).encode(RECORDS)
    assert as_lists(first) == as_lists(RecordEncoder(path).encode(RECORDS))
    (built,) = (cache / "ham_dist/vocabularies").glob("*.safetensors")
    assert built.read_bytes() == (path / "vocabulary/hashed.safetensors").read_bytes()
    state = built.stat()
    shutil.rmtree(earlier / "vocabulary")  # the cached file is enough
    assert as_lists(RecordEncoder(earlier).encode(RECORDS)) == as_lists(first)
    assert built.stat() == state
    built.unlink()
    with pytest.raises(BundleError, match=r"vocabulary/\w+.parquet: missing"):
        RecordEncoder(earlier)


def test_a_bundle_of_format_version_1_encodes_its_vocabulary(tmp_path: Path) -> None:
    bundle = unpack(tmp_path) / "finished/bundle"
    manifest = read_manifest(bundle)
    assert manifest.hashed_vocabulary is None
    assert len(manifest.vocabulary) > 3
    for field, file in manifest.vocabulary.items():
        known = pq.read_table(bundle / file)
        ids = RecordEncoder(bundle, [field]).encode(pa.table({field: known["value"]}))[field]
        assert (ids[0] if isinstance(ids, tuple) else ids).tolist() == known["id"].to_pylist()


def test_a_damaged_file_in_the_cache_is_built_again(earlier: Path, cache: Path) -> None:
    first = as_lists(RecordEncoder(earlier).encode(RECORDS))
    (built,) = (cache / "ham_dist/vocabularies").glob("*.safetensors")
    content = built.read_bytes()
    built.write_bytes(content[:100])
    assert as_lists(RecordEncoder(earlier).encode(RECORDS)) == first
    assert built.read_bytes() == content


def test_a_changed_vocabulary_is_refused(earlier: Path) -> None:
    shutil.copyfile(earlier / "vocabulary/user.parquet", earlier / "vocabulary/age.parquet")
    with pytest.raises(BundleError, match=r"vocabulary/age.parquet: damaged: its sha256"):
        RecordEncoder(earlier)


def test_without_a_cache_folder_the_process_has_its_own(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = as_lists(RecordEncoder(earlier).encode(RECORDS))
    assert {name: found[name] for name in IDS} == IDS
    assert "cannot be written" in caplog.text


def test_a_bundle_without_vocabulary(path: Path, bundle: Bundle) -> None:
    bare = Bundle(path, bundle.manifest.model_copy(update={"vocabulary": {}}))
    with pytest.raises(BundleError, match="has no vocabulary to encode raw values"):
        RecordEncoder(bare)


def test_encoding_loads_neither_torchrec_nor_duckdb(path: Path) -> None:
    code = (
        "import sys\nfrom ham_dist.serving import RecordEncoder\n"
        f"RecordEncoder({str(path)!r}).encode({RECORDS!r})\n"
        "loaded = {'torchrec', 'fbgemm_gpu', 'duckdb', 'ibis'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
