from pathlib import Path

import pytest

from ham_dist.data.prepare.workdir import beside, clear_leftovers, work_on
from ham_dist.errors import DataError


def _stop_after(out: Path, plan: dict[str, int], name: str) -> None:
    def work() -> None:
        with work_on(out, plan) as work:
            (work.data / name).write_text(name)
            (work.data / f".{name}.123").write_text("cut short")
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
            pytest.raises(DataError, match="out: another process is writing it"),
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
        pytest.raises(DataError, match="out: is there already; nothing was written"),
        work_on(tmp_path / "out", {}),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"file/ham_dist-\w+: cannot be made \(Not a directory\)"),
        work_on(tmp_path / "x", {}, spill=tmp_path / "file"),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"out\.partial: cannot be made \(Not a directory\)"),
        work_on(tmp_path / "out" / "first" / "out", {}),
    ):
        pass


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with beside(tmp_path / "file") as hidden:
            hidden.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []
    with beside(tmp_path / "file") as hidden:
        hidden.write_text("whole")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "whole"


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with work_on(Path("."), {}) as work:
        (work.data / "first").write_text("first")
    assert (tmp_path / "here" / "first").exists()


def test_a_process_that_was_killed_in_its_last_moment_leaves_nothing_for_long(tmp_path: Path) -> None:
    with work_on(tmp_path / "out", {}) as work:
        (work.data / "first").write_text("first")
    (tmp_path / ".out.partial" / "stage").mkdir(parents=True)
    clear_leftovers(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with work_on(tmp_path / "other", {}):
        clear_leftovers(tmp_path / "other")
        assert (tmp_path / ".other.partial").exists(), "somebody works there"


def test_a_place_that_is_not_on_this_machine_is_no_local_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(DataError, match=r"s3:/bucket/data: data is written to a folder of this machine"),
        work_on(Path("s3://bucket/data"), {}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
