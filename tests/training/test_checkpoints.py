"""Invalid and damaged checkpoints, which checkpoints are kept, and full disks."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.checkpoint import index, storage
from ham_dist.distributed.checkpoint.index import INDEX, PICKLE
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.errors import CheckpointError
from ham_dist.io.atomic import is_temporary, temporary_path
from ham_dist.run import run_stages
from ham_dist.training.checkpoints import Moment, drop_all_but_newest, moments
from ham_dist.training.guard import Guard
from tests.support.small_run import tiny_run
from tests.support.whole_runs import assert_same_bits, metrics


class Harmful:
    """Creates a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of two tensors."""
    with process_group():
        storage.hide_torch_warnings()
        storage.save(
            tmp_path / "epoch-0001",
            {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(4)},
            {"steps": 7},
        )
        yield tmp_path / "epoch-0001"


def empty() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(2, 3), "b": torch.tensor(0)}


def describe_again(path: Path) -> None:
    """Updates values.json to files that were replaced, as an attacker would."""
    whole = json.loads((path / storage.VALUES).read_text())
    write_values(path, {name: storage._description(path / name) for name in whole["files"]}, whole["values"])


def write_values(path: Path, files: dict[str, Any], values: dict[str, Any]) -> None:
    whole = {"files": files, "values": values, "sha256": storage._sha256_of(files, values)}
    (path / storage.VALUES).write_text(json.dumps(whole))


def test_what_was_saved_comes_back(saved: Path) -> None:
    tensors = empty()
    assert storage.load(saved, tensors) == {"steps": 7}
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert int(tensors["b"]) == 4


def test_a_failed_rewrite_leaves_the_checkpoint_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(temporary: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ham_dist.io.atomic.publish_folder", full)
    with pytest.raises(CheckpointError, match="cannot be written"):
        storage.save(saved, empty(), {"steps": 8})
    assert storage.load(saved, empty()) == {"steps": 7}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_pickled_index_is_refused_by_name_and_not_opened(saved: Path, tmp_path: Path) -> None:
    (saved / PICKLE).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    storage.load(saved, empty())
    (saved / INDEX).unlink()
    whole = json.loads((saved / storage.VALUES).read_text())
    del whole["files"][INDEX]
    write_values(saved, whole["files"], whole["values"])
    with pytest.raises(
        CheckpointError,
        match=r"epoch-0001: cannot be loaded \(.*\.metadata: is a pickle file, which can run code",
    ):
        storage.load(saved, empty())
    assert not (tmp_path / "harm").exists()


def test_a_pickle_in_place_of_a_tensor_is_refused_by_name_and_not_opened(saved: Path, tmp_path: Path) -> None:
    (data,) = saved.glob("*.distcp")
    torch.save(Harmful(tmp_path / "harm"), data)
    entries = json.loads((saved / INDEX).read_text())
    for tensor in entries["tensors"].values():
        tensor["chunks"][0] |= {"start": 0, "bytes": data.stat().st_size}
    (saved / INDEX).write_text(json.dumps(entries))
    describe_again(saved)
    with pytest.raises(CheckpointError, match=r"epoch-0001: cannot be loaded \(.*mkdir"):
        storage.load(saved, empty())
    assert not (tmp_path / "harm").exists()


def _chunk(offsets: list[int], sizes: list[int]) -> dict[str, Any]:
    """Returns a chunk whose bytes are never read."""
    return {"offsets": offsets, "sizes": sizes, "file": "__0_0.distcp", "start": 0, "bytes": 9}


@pytest.mark.parametrize(
    "chunks",
    [
        [([0, 0], [4, 6])],
        [([0, 0], [2, 6]), ([2, 0], [2, 6])],
        [([0, 3], [4, 3]), ([0, 0], [4, 3]), ([4, 0], [0, 6])],
        [([0, 0], [1, 2]), ([1, 0], [3, 2]), ([0, 2], [4, 4])],
    ],
)
def test_chunks_of_every_sharding_type_cover_a_tensor(chunks: list[tuple[list[int], list[int]]]) -> None:
    entry = {"type": "float32", "size": [4, 6], "chunks": [_chunk(*chunk) for chunk in chunks]}
    index._require_cover("a", index._tensor(entry))


OPENED: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


def test_the_index_is_hashed_once_and_read_once(saved: Path) -> None:
    global OPENED
    sys.addaudithook(_note_opened)
    OPENED = []
    try:
        storage.load(saved, empty())
        opened = OPENED.count(str(saved / INDEX))
    finally:
        OPENED = None
    assert opened == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "load"}, "load is not a data type of tensors"),
        (
            {
                "chunks": [
                    {"offsets": [0, 0], "sizes": [2, 3], "file": "../elsewhere", "start": 0, "bytes": 9}
                ]
            },
            "expected a file name without folders",
        ),
        ({"size": "many"}, "is not a checkpoint index"),
        ({"size": [3, 3], "chunks": []}, r"a: the chunks do not exactly cover the tensor of size \[3, 3\]"),
        ({"chunks": [_chunk([0, 0], [2, 2])]}, "do not exactly cover"),
        ({"chunks": [_chunk([0, 0], [1, 3])]}, "do not exactly cover"),
        ({"chunks": [_chunk([0, 0], [1, 3]), _chunk([0, 0], [2, 2])]}, "do not exactly cover"),
        ({"chunks": [_chunk([0, 0], [2, 2]), _chunk([1, 1], [1, 2])]}, "do not exactly cover"),
        ({"chunks": [_chunk([0, 0], [2, 3]), _chunk([2, 0], [1, 3])]}, "do not exactly cover"),
        ({"chunks": [_chunk([0], [6])]}, "do not exactly cover"),
    ],
)
def test_an_invalid_index_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    entries = json.loads((saved / INDEX).read_text())
    entries["tensors"]["a"] |= change
    (saved / INDEX).write_text(json.dumps(entries))
    describe_again(saved)
    with pytest.raises(CheckpointError, match=message):
        storage.load(saved, empty())


@pytest.mark.parametrize("name", [INDEX, storage.VALUES, "__0_0.distcp"])
@pytest.mark.parametrize("how", ["flip", "half", "gone"])
def test_every_damage_to_every_file_is_found(saved: Path, name: str, how: str) -> None:
    content = bytearray((saved / name).read_bytes())
    if how == "gone":
        (saved / name).unlink()
    elif how == "half":
        (saved / name).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        (saved / name).write_bytes(content)
    with pytest.raises(
        CheckpointError,
        match=r"epoch-0001: (cannot be loaded \(.*(missing|is damaged)|not a complete checkpoint)",
    ):
        storage.load(saved, empty())


def test_the_newest_and_the_best_of_each_stay(tmp_path: Path) -> None:
    best_of = {Moment(1): 1, Moment(2): 1, Moment(2, 30): 1, Moment(3): 3, Moment(3, 30): 3, Moment(4): 3}
    for moment, best in best_of.items():
        (tmp_path / moment.name).mkdir()
        write_values(tmp_path / moment.name, {}, {"stopper": {"best_epoch": best}})
    killed, mine = temporary_path(tmp_path / "epoch-0005"), tmp_path / "epoch-0005.partial"
    killed.mkdir()
    mine.mkdir()
    drop_all_but_newest(tmp_path, Moment(4), keep=2)
    assert moments(tmp_path) == [Moment(3), Moment(3, 30), Moment(4)]
    assert not killed.exists()
    assert mine.exists()
    drop_all_but_newest(tmp_path, Moment(3), keep=1)
    assert moments(tmp_path) == [Moment(3)], (
        "later checkpoints belong to a run that was continued differently"
    )


def test_a_checkpoint_of_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    run_until(tiny_run(), tmp_path / "run", {8: _stop})
    (path,) = (tmp_path / "run" / "checkpoints" / "pretrain").iterdir()
    whole = json.loads((path / storage.VALUES).read_text())
    del whole["values"]["steps"]
    write_values(path, whole["files"], whole["values"])
    with pytest.raises(CheckpointError, match=r"is of another version of ham_dist: values.json has no steps"):
        run_stages(tiny_run(), tmp_path / "run", resume=True)


def test_no_whole_checkpoint_left_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    run_until(tiny_run(), tmp_path / "run", {8: _stop})
    for file in tmp_path.glob(f"run/checkpoints/pretrain/*/{INDEX}"):
        file.write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"pretrain: none of the checkpoints can be loaded. Remove the folder"
    ):
        run_stages(tiny_run(), tmp_path / "run", resume=True)


class Stopped(Exception):
    pass


def _stop() -> None:
    raise Stopped


def run_until(settings: RunSettings, folder: Path, after: dict[int, Callable[[], None]]) -> None:
    """Runs the stages, and calls functions after the given training steps; `_stop` ends the run."""
    finish_step, done = Guard.finish_step, 0

    def finish_and_act(self: Guard, samples: int) -> None:
        nonlocal done
        done += 1
        finish_step(self, samples)
        after.get(done, lambda: None)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "finish_step", finish_and_act)
        with suppress(Stopped):
            run_stages(settings, folder, resume=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system of fixed size: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Fills the disk, once the first checkpoint is complete."""
    deadline = time.monotonic() + 600
    while not moments(disk / "run" / "checkpoints" / "pretrain"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


# TensorBoard writes its buffer in a thread, which dies if the disk is full; the run continues without it.
DYING_THREAD = "ignore::pytest.PytestUnhandledThreadExceptionWarning"


@pytest.mark.filterwarnings(DYING_THREAD)
@pytest.mark.parametrize("copy_bytes", [2**30, 0])
def test_a_disk_that_is_full_for_a_time_costs_a_warning(
    small_disk: Path, tmp_path: Path, copy_bytes: int
) -> None:
    """The disk is full from the first epoch to the second: the best checkpoint cannot be written."""
    settings = tiny_run(checkpoint={"copy_bytes": copy_bytes})
    run_stages(settings, tmp_path / "unbroken", resume=False)
    run_until(settings, small_disk / "run", {8: lambda: fill(small_disk), 19: (small_disk / "filler").unlink})
    log = (small_disk / "run" / "log.txt").read_text()
    assert log.count("cannot be written") == log.count("Training continues") == 1
    assert metrics(small_disk / "run") == metrics(tmp_path / "unbroken")
    assert_same_bits(small_disk / "run", tmp_path / "unbroken")


def refuse_to_delete(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Folders whose names begin with `names` cannot be deleted."""
    rmtree = shutil.rmtree

    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith(names):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)


def test_old_checkpoints_that_cannot_be_deleted_cost_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_delete(monkeypatch, "epoch-")
    run_until(tiny_run(), tmp_path / "run", {20: _stop})
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("pretrain: old checkpoints cannot be deleted ([Errno 13] Permission denied: ") == 1
    assert len(moments(tmp_path / "run" / "checkpoints" / "pretrain")) > tiny_run().checkpoint.keep + 1
    monkeypatch.undo()
    run_stages(tiny_run(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_one_checkpoint_that_cannot_be_deleted_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epochs in (1, 2, 3, 4):
        (tmp_path / Moment(epochs).name).mkdir()
        write_values(tmp_path / Moment(epochs).name, {}, {"stopper": {"best_epoch": 4}})
    refuse_to_delete(monkeypatch, "epoch-0002")
    with pytest.raises(PermissionError, match="epoch-0002"):
        drop_all_but_newest(tmp_path, Moment(4), keep=1)
    assert moments(tmp_path) == [Moment(2), Moment(4)]


@pytest.mark.filterwarnings(DYING_THREAD)
def test_a_disk_that_stays_full_is_an_error_once_the_stages_result_would_be_lost(small_disk: Path) -> None:
    settings = tiny_run()
    with pytest.raises(CheckpointError, match=r"could not be written, and the stage's result would be lost"):
        run_until(settings, small_disk / "run", {8: lambda: fill(small_disk)})
    left = moments(small_disk / "run" / "checkpoints" / "pretrain")
    assert left == [Moment(0, 5)], "earlier checkpoints are unchanged, and nothing half-written is left"
    assert not list(filter(is_temporary, (small_disk / "run" / "checkpoints" / "pretrain").iterdir()))
    (small_disk / "filler").unlink()
    run_stages(settings, small_disk / "run", resume=True)
    assert (small_disk / "run" / "result.json").exists()
