"""Files and folders that appear whole or not at all."""

import errno
from pathlib import Path
from typing import Any

import pytest

from ham_dist.io import atomic


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails_half_way() -> None:
        with atomic.new_file(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fails_half_way()
    assert path.read_text() == "old"
    atomic.write_text(path, "new")
    assert path.read_text() == "new"
    assert left(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("at", ["before", "within"])
def test_an_existing_file_stays_where_it_may_not_be_replaced(tmp_path: Path, at: str) -> None:
    path = tmp_path / "a.txt"
    if at == "before":
        path.write_text("theirs")

    def write() -> None:
        with atomic.new_file(path, replace=False) as temporary:
            temporary.write_text("ours")
            if at == "within":
                path.write_text("theirs")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_text() == "theirs"
    assert left(tmp_path) == ["a.txt"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def fails_half_way() -> None:
        with atomic.new_folder(path) as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fails_half_way()
    assert left(tmp_path) == []
    with atomic.new_folder(path) as temporary:
        (temporary / "a").write_text("whole")
        assert not path.exists()
    assert (path / "a").read_text() == "whole"
    assert left(tmp_path) == ["bundle"]


def test_a_folder_never_replaces_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "mine").touch()
    with pytest.raises(FileExistsError), atomic.new_folder(path):
        pass
    assert left(path) == ["mine"]


def test_users_own_partial_files_are_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    ours, theirs = atomic.temporary_path(path), atomic.temporary_path(path)
    assert ours != theirs
    assert atomic.is_temporary(ours)
    assert atomic.is_temporary(ours, of=path)
    assert not atomic.is_temporary(ours, of=tmp_path / "out.csv")
    for name in (
        "out.txt.partial",
        ".out.txt.partial",
        "out.ham-partial",
        ".out.txt.ham-partial",
        ".x.zz.ham-partial",
    ):
        assert not atomic.is_temporary(tmp_path / name)


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    atomic.write_text(path, "x")
    assert path.read_text() == "x"
    assert atomic.is_temporary(atomic.temporary_path(path), of=path)


def test_json_that_is_none_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a.json", float("nan"))
    assert left(tmp_path) == []


@pytest.mark.parametrize("new", [atomic.new_file, atomic.new_folder])
def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path: Path, new: Any) -> None:
    """A failed write names no file (`[Errno 28] No space left on device`), or only the temporary one."""
    for name in (None, str(atomic.temporary_path(tmp_path / "a"))):
        with pytest.raises(OSError, match="No space left") as caught, new(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        assert caught.value.filename == str(tmp_path / "a")
    assert left(tmp_path) == []
