import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ham_dist.cli.describe import describe, describe_statistics
from ham_dist.config.load import load_run
from ham_dist.data.statistics import DatasetStatistics, FieldStatistics
from ham_dist.errors import BundleError, DataError, ReportError
from ham_dist.export.delta_manifest import DeltaManifest, Same, Whole, write_delta_manifest
from ham_dist.export.manifest import FileEntry
from ham_dist.export.patches import Column, Patch
from ham_dist.io.atomic import write_json
from ham_dist.training.run_folder import RunFolder


def _described(path: Path) -> list[list[str]]:
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    for part in describe(path):
        console.print(part, soft_wrap=True)
    return [line.split() for line in stream.getvalue().splitlines()]


def test_run_of_several_targets(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(
        load_run(None, ["search.targets=[{columns = 14}, {bytes = 99}]"]),
        resume=False,
        world_size=1,
        device="cpu",
    )
    done = RunFolder(tmp_path / "columns-14")
    done.path.mkdir()
    write_json(
        done.result,
        {
            "model": "dcnv2",
            "method": "ham",
            "dataset": "x",
            "seed": 0,
            "kept_columns": {"a": 14},
            "test_auc": 0.8916,
            "test_logloss": 0.35,
            "validation_auc": 0.9,
            "embedding_parameters": 300,
            "embedding_bytes": 1234,
            "dense_parameters": 3281,
            "seconds": {},
            "samples_per_second": {},
            "peak_memory_bytes": 1,
            "world_size": 1,
            "device": "cpu",
        },
    )
    lines = _described(tmp_path)
    assert ["columns-14", "done", "0.8916", "0.3500", "1,234", "3,281"] in lines
    assert ["bytes-99", "not", "done"] in lines


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"test_auc": "[/]"}', "[" * 100_000])
def test_a_damaged_result_is_refused(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.start(load_run(None, []), resume=False, world_size=1, device="cpu")
    folder.result.write_text(content)
    with pytest.raises(ReportError, match=r"result\.json: is damaged"):
        _described(tmp_path)


def test_other_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        _described(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds neither a manifest\.json"):
        _described(tmp_path)


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", DataError), ("[]", DataError), (json.dumps({"format": "ham_dist bundle"}), BundleError)],
)
def test_damaged_manifest_is_refused(tmp_path: Path, content: str, error: type[Exception]) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(error, match=r"manifest\.json"):
        _described(tmp_path)


def test_statistics_list_rejected_lines_by_reason_and_warn() -> None:
    field = FieldStatistics(
        name="city",
        rows=50_000,
        multi_valued=False,
        bytes=3_200_000,
        head={"0.1%": 0.25, "1%": 0.5, "10%": 0.75, "50%": 1.0},
        ids_seen=41_234,
        ids_seen_once=77,
        zero={"train": 0.01, "validation": 0.02, "test": 0.03},
        unseen={"validation": 0.2, "test": 0.04},
    )
    look = DatasetStatistics(
        name="x", seed=0, dim=16, precision="float32", splits={}, rows_in=1_005, rows_dropped=2,
        rejected={"too few columns": 3, "not a number": 1}, fields=[field], alarms=["field city: much"],
    )  # fmt: skip
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    for part in describe_statistics(look):
        console.print(part, soft_wrap=True)
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["too", "few", "columns", "3"] in lines
    assert ["city", "50,000", "3.20", "41,234", "77", "25.0%", "50.0%", "75.0%", "100.0%"] in lines
    assert ["city", "1.0%", "2.0%", "3.0%", "20.0%", "4.0%"] in lines
    assert lines[-1] == ["warning:", "field", "city:", "much"]


def test_delta(tmp_path: Path) -> None:
    row = Column(row_bytes=8, old_start=128, old_rows=100)
    patch = Patch(
        kind="replace", file="patches/1.bin", head=128, rows=1100, changed=1020, columns=(row,), tail=0
    )
    entry = FileEntry(size=1000, sha256="0" * 64)
    manifest = DeltaManifest(
        old="a" * 64,
        new="b" * 64,
        manifest=Whole(file="files/0"),
        parts={"tables/a.safetensors": patch, "dense.safetensors": Whole(file="files/2"), "c": Same()},
        files={"patches/1.bin": entry, "files/0": entry, "files/2": entry},
    )
    write_delta_manifest(tmp_path, manifest)
    first, *table = _described(tmp_path)
    assert first[1:] == [
        "a",
        "delta,",
        "3,000",
        "bytes,",
        "from",
        "the",
        "bundle",
        "aaaaaaaaaaaa",
        "to",
        "bbbbbbbbbbbb",
    ]
    assert ["tables/a.safetensors", "replace", "1,100", "1,020"] in table
    assert ["dense.safetensors", "whole"] in table
    assert ["c", "same"] in table
    (tmp_path / "delta.json").write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        _described(tmp_path)


def test_package(tmp_path: Path) -> None:
    verified = {"records": 74, "max_difference": {"onnx": 6e-8}, "tolerance": 1e-5}
    package = {"package": "onnx", "ham_dist": "0.1.0", "bundle": "a" * 64, "verified": verified}
    write_json(tmp_path / "package.json", package)
    first, *table, last = _described(tmp_path)
    assert first[1:] == [
        "a",
        "package,",
        "onnx,",
        "of",
        "the",
        "bundle",
        "aaaaaaaaaaaa,",
        "written",
        "by",
        "ham_dist",
        "0.1.0",
    ]
    assert ["onnx", "6e-08"] in table
    assert last == ["compared", "on", "74", "records;", "allowed:", "1e-05"]
    wrong: list[Any] = [{}, [], package | {"verified": {"records": 0}}, package | {"format": "other"}]
    for damaged in wrong:
        write_json(tmp_path / "package.json", damaged)
        with pytest.raises(BundleError, match=r"package\.json"):
            _described(tmp_path)
