"""Raw files that change while they are read, and files of the same name: the manifest names what was read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.raw.files import sample_blocks
from ham_dist.data.recipe.load import Recipe, parse_recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of
from tests.support.tiny_logs import tiny_recipe, write_tiny

LINES = ["1,a", "0,b", "1,a", "0,b"]


def recipe() -> Recipe:
    return tiny_recipe(["item"], {"item": {"kind": "categorical"}})


@pytest.mark.parametrize("way", ["append", "overwrite", "replace"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_tiny(tmp_path / "raw", "click,item", LINES, LINES)
    path = raw / "train.csv"
    content = path.read_bytes()

    def changing(file: Path, *rest: Any) -> Iterator[Any]:
        yield from sample_blocks(file, *rest)
        if way == "append":
            path.write_bytes(content + b"1,c\n")
        elif way == "overwrite":
            path.write_bytes(content.replace(b"a", b"c"))
        else:
            (raw / "new").write_bytes(content.replace(b"a", b"c"))
            os.replace(raw / "new", path)

    monkeypatch.setattr("ham_dist.data.prepare.stage.sample_blocks", changing)
    with pytest.raises(
        DataError, match=r"train\.csv: changed while it was read; .*\n .*run the same command again"
    ):
        prepare(recipe(), raw, tmp_path / "out")
    monkeypatch.undo()
    manifest = prepare(recipe(), raw, tmp_path / "out")
    assert manifest.raw[0].sha256 == sha256_of(path)
    assert manifest.rows_in == 8 + (way == "append")


def test_other_rights_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_tiny(tmp_path / "raw", "click,item", LINES, LINES)

    def changing(file: Path, *rest: Any) -> Iterator[Any]:
        yield from sample_blocks(file, *rest)
        file.chmod(0o600)

    monkeypatch.setattr("ham_dist.data.prepare.stage.sample_blocks", changing)
    assert prepare(recipe(), raw, tmp_path / "out").rows_in == 8


def nested() -> Recipe:
    """Two files of one name in two folders."""
    settings = recipe().model_dump(mode="json")
    files = ["monday/log.csv", "tuesday/log.csv"]
    settings["samples"]["file"] = files
    settings["split"] = {"kind": "files", "train": files[:1], "validation": files[1:], "test": files[1:]}
    return parse_recipe(settings, where="tests")


def test_two_files_of_one_name_size_and_time_are_two_files(tmp_path: Path) -> None:
    for day, lines in (("monday", LINES), ("tuesday", [line.replace("a", "b") for line in LINES])):
        (tmp_path / "raw" / day).mkdir(parents=True)
        path = tmp_path / "raw" / day / "log.csv"
        path.write_text("\n".join(["click,item", *lines, "bad line"]) + "\n")
        os.utime(path, ns=(10**18, 10**18))
    allowing = nested().model_copy(update={"max_rejected": 0.5})
    manifest = prepare(allowing, tmp_path / "raw", tmp_path / "out")
    assert [(one.file, one.sha256) for one in manifest.raw] == [
        (f"{day}/log.csv", sha256_of(tmp_path / "raw" / day / "log.csv")) for day in ("monday", "tuesday")
    ]
    rejected = pq.read_table(tmp_path / "out/rejected/lines.parquet")["file"].to_pylist()
    assert rejected == ["monday/log.csv", "tuesday/log.csv"]
    assert prepare(allowing, tmp_path / "raw", tmp_path / "out") == manifest


def test_a_raw_folder_with_other_files_of_the_same_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, letter in (("first", "a"), ("second", "c")):
        lines = [line.replace("a", letter) for line in LINES]
        for path in write_tiny(tmp_path / folder, "click,item", lines, lines).iterdir():
            os.utime(path, ns=(10**18, 10**18))
    with monkeypatch.context() as patched:
        patched.setattr("ham_dist.data.prepare.count.write_shard", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(), tmp_path / "first", tmp_path / "out")
    manifest = prepare(recipe(), tmp_path / "second", tmp_path / "out")
    assert manifest.raw[0].sha256 == sha256_of(tmp_path / "second" / "train.csv")
    assert manifest.splits == prepare(recipe(), tmp_path / "second", tmp_path / "whole").splits


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
