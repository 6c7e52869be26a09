"""One checkpoint on disk: tensors of all ranks, by torch.distributed.checkpoint, and JSON values.

Opening a checkpoint runs no code that it contains.
"""

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
"""File that is written last, with the sha256 of its own content, and the size and sha256 of every other file.
A folder without it is not a checkpoint."""


def save(
    path: Path, tensors: Mapping[str, Any], values: Mapping[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Writes a checkpoint under a temporary name and renames it to `path`, so that `path` is always complete.

    A collective.

    Args:
        path: Folder of the checkpoint; replaced if it exists.
        tensors: Replicated tensors and ShardedTensors, with the same names on every rank.
        values: Plain JSON values, the same on every rank.
        group: The process group that is used while writing; with a separate one, training can continue
            meanwhile.
    Raises:
        CheckpointError: On all ranks, if one of them cannot write. Other checkpoints are not changed.
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
        try:
            atomic.publish_folder(folder, path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    try:
        with _as_checkpoint_error(
            f"{path}: cannot be written", "Free disk space there, or check the permissions and the disk."
        ):
            temporary = folder = process_group.on_first_rank(make, group)
            writer = IndexedWriter(folder, single_file_per_rank=True)
            # Each name is one tensor, so torch need not flatten nested dicts.
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
    """Reads a checkpoint into `tensors`, in place, from any number of ranks that wrote it. A collective.

    Args:
        path: Folder of the checkpoint.
        tensors: Replicated tensors and ShardedTensors.
        check: Called on every rank with the checkpoint's values before tensors are read; may raise an error.
    Returns:
        The checkpoint's values.
    Raises:
        CheckpointError: On all ranks, if a file is damaged, or the checkpoint has other tensors than these or
            only a part of one. `tensors` may then be partly overwritten.
    """
    hide_torch_warnings()
    whole = _read(path)
    values: dict[str, Any] = whole["values"]
    check(values)
    reader = IndexedReader(path)
    with _as_checkpoint_error(
        f"{path}: cannot be loaded",
        "If its files are damaged, remove the folder; --resume then uses the checkpoint before it.",
    ):
        process_group.together(lambda: _check_files(path, whole["files"]))
        # Read before dcp.load, which in torch 2.11 ignores errors in the index; the reader keeps the result.
        process_group.together(reader.read_metadata)
        dcp.load(
            dict(tensors),
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False),
        )
    give_back_freed_memory()
    return values


def read_values(path: Path) -> dict[str, Any]:
    """Returns the values of a checkpoint, read on rank 0. A collective."""
    values: dict[str, Any] = _read(path)["values"]
    return values


def values_of(path: Path) -> dict[str, Any]:
    """Returns the whole content of values.json, read on this rank; not a collective.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        whole: dict[str, Any] = read_json(path / VALUES, finite=False)
        if _sha256_of(whole["files"], whole["values"]) != whole["sha256"]:
            raise ValueError("its content does not match its sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint: {VALUES}: {error}.\n"
            "  Remove the folder to resume from the checkpoint before it."
        ) from error
    return whole


def _read(path: Path) -> dict[str, Any]:
    return process_group.on_first_rank(lambda: values_of(path))


def _described_files(folder: Path) -> dict[str, Any]:
    """Returns size and sha256 of the files that this rank has written; rank 0 also wrote the index."""
    mine = sorted(folder.glob(f"__{process_group.rank()}_*")) + (
        sorted(folder.glob("*.json")) if process_group.rank() == 0 else []
    )
    return {path.name: _description(path) for path in mine}


def _description(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _sha256_of(files: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([files, values], sort_keys=True).encode()).hexdigest()


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Checks size and sha256 of this rank's share of the files; the ranks share the work."""
    for name in sorted(files)[process_group.rank() :: process_group.world_size()]:
        path = folder / Path(name).name
        if not path.exists():
            raise CheckpointError(f"{path.name} is missing")
        if _description(path) != files[name]:
            raise CheckpointError(f"{path.name} is damaged: its size or sha256 differs from {VALUES}")


@contextmanager
def _as_checkpoint_error(problem: str, fix: str) -> Iterator[None]:
    """Turns torch's errors about files into a CheckpointError.

    Errors that do not concern files (Ctrl-C, memory, a lost rank) are raised unchanged. torch's
    CheckpointException is not an Exception; it holds the error of each rank.
    """
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception) or isinstance(cause, MemoryError):
                raise cause from None
        raise CheckpointError(f"{problem} ({_reason(causes[0]) if causes else error}).\n  {fix}") from error
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{problem} ({_reason(error)}).\n  {fix}") from error


def _reason(error: BaseException) -> str:
    """Returns the most useful line of an error's text, or its class name if it has none."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    refused = [line for line in lines if "Unsupported" in line or "Trying to load" in line]
    return (refused or lines or [type(error).__name__])[-1]


def hide_torch_warnings() -> None:
    """Hides torch's warnings about its own uses of ShardedTensor and TypedStorage.

    The filters stay for the whole process: a thread that restores the filters would also remove those of
    other threads.
    """
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
