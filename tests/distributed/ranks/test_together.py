"""If one rank fails, all ranks raise an error of the same class."""

import errno
from datetime import timedelta
from pathlib import Path

import torch

from ham_dist.distributed.checkpoint import storage
from ham_dist.distributed.checkpoint.writer import CheckpointWriter
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import CheckpointError, HamError
from tests.support.ranks import run_on_ranks

ERRORS = {
    "ours": CheckpointError("is damaged"),
    "the disk's": OSError(errno.ENOSPC, "No space left on device", "a/b"),
    "Arrow's": OSError("Corrupt snappy compressed data."),
    "a bug": KeyError("x"),
}


def fail_on_the_last_rank(which: str) -> tuple[str, str, int | None]:
    def work() -> None:
        if process_group.rank() == process_group.world_size() - 1:
            raise ERRORS[which]

    try:
        process_group.together(work)
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "errno", None)
    return "none", "", None


def test_what_one_rank_raises_all_raise_as_the_same_class() -> None:
    assert run_on_ranks(2, fail_on_the_last_rank, "ours") == [
        ("CheckpointError", "rank 1: is damaged", None),
        ("CheckpointError", "is damaged", None),
    ]
    first, last = run_on_ranks(2, fail_on_the_last_rank, "the disk's")
    assert (first[0], first[2]) == (last[0], last[2]) == ("OSError", errno.ENOSPC)
    assert "rank 1" in first[1]
    assert "No space left" in first[1]
    assert run_on_ranks(2, fail_on_the_last_rank, "Arrow's") == [
        ("OSError", "rank 1: Corrupt snappy compressed data.", None),
        ("OSError", "Corrupt snappy compressed data.", None),
    ]
    assert [name for name, _, _ in run_on_ranks(2, fail_on_the_last_rank, "a bug")] == [
        "RuntimeError",
        "KeyError",
    ]


def load_damaged(folder: Path) -> str:
    tensors = {"a": torch.arange(4.0)}
    storage.save(folder / "one", tensors, {"epoch": 1})
    if process_group.rank() == 0:
        (folder / "one" / storage.VALUES).write_text("{}")
    try:
        storage.load(folder / "one", tensors)
    except HamError as error:
        return type(error).__name__
    return "none"


def test_a_checkpoint_damaged_for_the_first_rank_is_damaged_for_all(tmp_path: Path) -> None:
    assert run_on_ranks(2, load_damaged, tmp_path) == ["CheckpointError"] * 2


def snapshot_of_unequal_ranks(folder: Path) -> bool:
    with CheckpointWriter(copy_bytes=100, timeout=timedelta(minutes=10)) as writer:
        rows = 100 if process_group.rank() else 1
        return writer.snapshot(folder, {"a": torch.zeros(rows)}, {}).copied


def test_where_one_rank_has_no_room_for_a_copy_none_makes_one(tmp_path: Path) -> None:
    assert run_on_ranks(2, snapshot_of_unequal_ranks, tmp_path) == [False, False]
