from collections.abc import Callable
from pathlib import Path

import pytest

from ham_dist.data.prepare.workdir import clear_leftovers, work_folder, work_on
from ham_dist.errors import DataError
from ham_dist.io.atomic import temporary_path


def _stop_after(out: Path, plan: dict[str, int], name: str) -> None:
    def work() -> None:
        with work_on(out, plan) as work:
            (work.data / name).write_text(name)
            temporary_path(work.data / name).write_text("cut short")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()


def test_what_is_finished_is_kept_for_the_same_plan(tmp_path: Path) -> None:
    _stop_after(tmp_path / "out", {"seed": 1}, "first")
    with work_on(tmp_path / "out", {"seed": 1}) as work:
        assert sorted(path.name for path in work.data.iterdir()) == ["first"]
        (work.data / "second").write_text("second")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "second"]


def test_what_another_plan_left_is_deleted(tmp_path: Path) -> None:
    _stop_after(tmp_path / "out", {"seed": 1}, "first")
    with work_on(tmp_path / "out", {"seed": 2}) as work:
        assert [path.name for path in work.data.iterdir()] == []


def test_only_one_process_writes(tmp_path: Path) -> None:
    with work_on(tmp_path / "out", {}) as work:
        (work.data / "first").write_text("first")
        with (
            pytest.raises(DataError, match="out: is being written by another process"),
            work_on(tmp_path / "out", {}),
        ):
            pass
        assert (work.data / "first").exists()
    assert (tmp_path / "out" / "first").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out").mkdir()
    with work_on(tmp_path / "out", {}) as work:
        (work.data / "first").write_text("first")
    with (
        pytest.raises(DataError, match="out: already exists; nothing was written"),
        work_on(tmp_path / "out", {}),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"file/ham_dist-\w+: cannot be created \(Not a directory\)"),
        work_on(tmp_path / "x", {}, spill=tmp_path / "file"),
    ):
        pass
    with (
        pytest.raises(
            DataError,
            match=r"first: cannot be created \(Not a directory|first: cannot be created \(File exists",
        ),
        work_on(tmp_path / "out" / "first" / "out", {}),
    ):
        pass


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with work_on(Path("."), {}) as work:
        (work.data / "first").write_text("first")
    assert (tmp_path / "here" / "first").exists()


def test_a_process_that_was_killed_in_its_last_moment_leaves_nothing_for_long(tmp_path: Path) -> None:
    with work_on(tmp_path / "out", {}) as work:
        (work.data / "first").write_text("first")
    work_folder(tmp_path / "out").mkdir()
    clear_leftovers(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with work_on(tmp_path / "other", {}):
        clear_leftovers(tmp_path / "other")
        assert work_folder(tmp_path / "other").exists(), "somebody works there"


def test_a_place_that_is_not_on_this_machine_is_no_local_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(DataError, match=r"s3:/bucket/data: is not a local path"),
        work_on(Path("s3://bucket/data"), {}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def _users_folder(tmp_path: Path) -> Path:
    folder = work_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


def _link_to_users_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "notes.txt").write_text("mine")
    work_folder(tmp_path / "out").symlink_to(folder)
    return folder / "data"


@pytest.mark.parametrize("make", [_users_folder, _link_to_users_folder])
def test_a_folder_of_the_user_under_the_work_folders_name_is_left_alone(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)
    with pytest.raises(DataError, match="but holds other files"), work_on(tmp_path / "out", {}):
        pass
    clear_leftovers(tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_users_file_in_the_work_folder_stays(tmp_path: Path) -> None:
    with work_on(tmp_path / "out", {}) as work:
        (work.folder / "notes.txt").write_text("mine")
    assert (work_folder(tmp_path / "out") / "notes.txt").read_text() == "mine"


def test_a_damaged_record_is_a_piece_to_do_again(tmp_path: Path) -> None:
    """A power failure can leave a file of the right name without its content."""
    with work_on(tmp_path / "out", {}) as work:
        for content in (b"", b"{", b"\0" * 20, b"[" * 100_000, b"1" * 5000):
            work.done("piece", [1])
            assert work.record("piece") == [1]
            (work.folder / "records" / "piece.json").write_bytes(content)
            assert work.record("piece") is None
