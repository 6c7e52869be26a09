"""Files and folders that appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
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


def created_by_another(monkeypatch: pytest.MonkeyPatch, path: Path, *, links: bool) -> None:
    """Another process creates the file `path` right before a file or folder gets that name."""

    def then(call: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            path.write_text("theirs")
            if call is os_link and not links:
                raise OSError(errno.EPERM, "Operation not permitted")
            return call(*arguments, **options)

        return changed

    os_link = os.link
    for name in ("link", "rename", "replace"):
        monkeypatch.setattr(os, name, then(getattr(os, name)))


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_file_that_another_process_creates_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    created_by_another(monkeypatch, tmp_path / "a.txt", links=links)
    with pytest.raises(FileExistsError):
        atomic.write_text(tmp_path / "a.txt", "ours", replace=False)
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert left(tmp_path) == ["a.txt"]


def test_a_new_file_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    atomic.write_text(tmp_path / "a.txt", "ours", replace=False)
    assert (tmp_path / "a.txt").read_text() == "ours"
    assert left(tmp_path) == ["a.txt"]


def written_folder(path: Path) -> Path:
    temporary = atomic.temporary_path(path)
    temporary.mkdir()
    (temporary / "a").write_text("whole")
    return temporary


def test_a_folder_gets_its_name_with_all_files(tmp_path: Path) -> None:
    atomic.publish_folder(written_folder(tmp_path / "bundle"), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "a").read_text() == "whole"
    assert left(tmp_path) == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_folder_never_replaces_what_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle"
    if kind == "folder":
        path.mkdir()
        (path / "mine").touch()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to("elsewhere")
    temporary = written_folder(path)
    with pytest.raises(FileExistsError):
        atomic.publish_folder(temporary, path)
    assert left(tmp_path) == [temporary.name, "bundle"]


def test_a_folder_never_replaces_a_file_of_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = written_folder(tmp_path / "bundle")
    created_by_another(monkeypatch, tmp_path / "bundle", links=True)
    with pytest.raises(FileExistsError):
        atomic.publish_folder(temporary, tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "theirs"


KILLED = """
import os, signal, sys
from pathlib import Path
from ham_dist.io.atomic import temporary_folder
with temporary_folder(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "bundle"], check=False)
    assert done.returncode == -signal.SIGKILL
    (killed,) = tmp_path.iterdir()
    for theirs in (".bundle.ham-partial", "bundle.partial", ".bundle"):
        (tmp_path / theirs).mkdir()
    other_output = written_folder(tmp_path / "other")
    link = atomic.temporary_path(tmp_path / "bundle")
    link.symlink_to(tmp_path / "bundle.partial", target_is_directory=True)
    before = left(tmp_path)
    with atomic.temporary_folder(tmp_path / "bundle") as temporary:
        assert not killed.exists()
        assert set(left(tmp_path)) == {*before, temporary.name} - {killed.name}
    assert other_output.exists()
    assert set(left(tmp_path)) == {*before} - {killed.name}


def test_a_folder_that_a_process_works_in_stays(tmp_path: Path) -> None:
    with atomic.temporary_folder(tmp_path / "bundle") as first:
        (first / "a").write_text("first")
        with atomic.temporary_folder(tmp_path / "bundle") as second:
            assert first != second
            assert (first / "a").exists()
        assert left(tmp_path) == [first.name]
        atomic.publish_folder(first, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "a").read_text() == "first"
    assert left(tmp_path) == ["bundle"]


def test_without_locks_nothing_of_others_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    theirs = written_folder(tmp_path / "bundle")
    with atomic.temporary_folder(tmp_path / "bundle") as temporary:
        assert temporary.is_dir()
    assert left(tmp_path) == [theirs.name]


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


def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A failed write names no file (`[Errno 28] No space left on device`), or only the temporary one."""
    for name in (None, str(atomic.temporary_path(tmp_path / "a"))):
        with pytest.raises(OSError, match="No space left") as caught, atomic.new_file(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        assert caught.value.filename == str(tmp_path / "a")
    assert left(tmp_path) == []
