"""One checkpoint on disk: tensors from all ranks by torch.distributed.checkpoint, and JSON beside them. Opening one runs nothing that it holds."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from ham_dist.distributed.checkpoint.index import IndexedReader, IndexedWriter
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import CheckpointError
from ham_dist.io import atomic
from ham_dist.io.hashing import sha256_of
from ham_dist.io.huge_pages import give_back_freed_memory
from ham_dist.io.untrusted import read_json

VALUES = "values.json"
"""Written last, with the size and the sha256 of every other file and of itself: a folder without it is no checkpoint."""


def save(
    path: Path, tensors: Mapping[str, Any], values: Mapping[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint under a temporary name and rename it to `path`, so that `path` is whole or not there.

    tensors: named alike on every rank; replicated tensors and ShardedTensors.
    values:  plain JSON values, alike on every rank.
    group:   what the ranks talk over while they write; one of its own lets training go on beside.
    raises:  CheckpointError on all ranks if one of them cannot write; other checkpoints stay as they are.
    """
    temporary: Path | None = None

    def make() -> Path:
        folder = atomic.temporary_path(path)
        folder.mkdir(parents=True)
        return folder

    def finish(folder: Path, files: Mapping[str, Any]) -> None:
        content = {"files": files, "values": values, "sha256": _sha256_of(files, values)}
        (folder / VALUES).write_text(json.dumps(content), encoding="utf-8")
        replaced = atomic.temporary_path(path)
        if path.exists():
            path.rename(replaced)
        atomic.publish_folder(folder, path)
        shutil.rmtree(replaced, ignore_errors=True)

    try:
        with _told(f"{path}: cannot be written", "Make room there, or see why the disk refuses."):
            temporary = folder = process_group.on_first_rank(make, group)
            writer = IndexedWriter(folder, single_file_per_rank=True)
            # A name stands for one tensor: torch need not look for names within names.
            dcp.save(
                dict(tensors),
                storage_writer=writer,
                planner=DefaultSavePlanner(flatten_state_dict=False),
                process_group=group,
            )
            written = process_group.gather_objects(
                process_group.together(lambda: _described_files(folder), group), group
            )
            process_group.on_first_rank(
                lambda: finish(folder, {name: entry for files in written for name, entry in files.items()}),
                group,
            )
    except CheckpointError:
        if process_group.rank() == 0 and temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        give_back_freed_memory()


def load(
    path: Path,
    tensors: Mapping[str, Any],
    check: Callable[[dict[str, Any]], None] = lambda values: None,
) -> dict[str, Any]:
    """Read a checkpoint into `tensors`, in place, whatever the number of ranks that wrote it.

    Args:
        check: Called with the checkpoint's values before any tensor is read, on every rank alike; it may raise.
    Returns:
        The checkpoint's values.
    Raises:
        CheckpointError: On all ranks: a file is not what was written, or the checkpoint holds other tensors than
            these, or only a part of one. `tensors` may then be partly overwritten.
    """
    quiet()
    whole = _read(path)
    values: dict[str, Any] = whole["values"]
    check(values)
    reader = IndexedReader(path)
    with _told(
        f"{path}: cannot be loaded",
        "If its files are damaged, remove the folder: --resume then goes on from the checkpoint before it.",
    ):
        process_group.together(lambda: _check_files(path, whole["files"]))
        # Before dcp.load, which ignores mistakes of an index in torch 2.11; the reader keeps what it has read.
        process_group.together(reader.read_metadata)
        dcp.load(
            dict(tensors),
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False),
        )
    give_back_freed_memory()
    return values


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, read on rank 0; every rank calls it."""
    values: dict[str, Any] = _read(path)["values"]
    return values


def values_of(path: Path) -> dict[str, Any]:
    """The same, of this rank alone."""
    try:
        whole: dict[str, Any] = read_json(path / VALUES, finite=False)
        if _sha256_of(whole["files"], whole["values"]) != whole["sha256"]:
            raise ValueError("is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: no whole checkpoint: {VALUES}: {error}. Remove it to go on from the checkpoint before it."
        ) from error
    return whole


def _read(path: Path) -> dict[str, Any]:
    return process_group.on_first_rank(lambda: values_of(path))


def _described_files(folder: Path) -> dict[str, Any]:
    """Size and sha256 of the files that this rank has written; the first rank wrote the index too."""
    mine = sorted(folder.glob(f"__{process_group.rank()}_*")) + (
        sorted(folder.glob("*.json")) if process_group.rank() == 0 else []
    )
    return {path.name: _description(path) for path in mine}


def _description(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _sha256_of(files: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([files, values], sort_keys=True).encode()).hexdigest()


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Each rank reads its part of the files, so that many ranks check a large checkpoint quickly."""
    for name in sorted(files)[process_group.rank() :: process_group.world_size()]:
        path = folder / Path(name).name
        if not path.exists():
            raise CheckpointError(f"{path.name} is missing")
        if _description(path) != files[name]:
            raise CheckpointError(f"{path.name} is not what was written")


@contextmanager
def _told(what: str, mend: str) -> Iterator[None]:
    """Turn what torch raises about files into a CheckpointError; what has to do with no file (Ctrl-C, memory, a lost rank) goes through.

    torch's CheckpointException is no Exception. It carries what failed on each rank.
    """
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception) or isinstance(cause, MemoryError):
                raise cause from None
        raise CheckpointError(f"{what} ({_reason(causes[0]) if causes else error}).\n  {mend}") from error
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{what} ({_reason(error)}).\n  {mend}") from error


def _reason(error: BaseException) -> str:
    """The line of an error's text that says most, or its name."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    refused = [line for line in lines if "Unsupported" in line or "Trying to load" in line]
    return (refused or lines or [type(error).__name__])[-1]


def quiet() -> None:
    """torch warns on every call of its own uses of ShardedTensor and TypedStorage.

    Told once for the whole process and not around each call: a filter that a thread sets and takes back takes back others' as well.
    """
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
