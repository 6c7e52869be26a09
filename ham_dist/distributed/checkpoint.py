"""One checkpoint on disk: tensors from all ranks by torch.distributed.checkpoint, and a JSON of plain values beside them."""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from ham_dist.distributed import process_group
from ham_dist.errors import CheckpointError

VALUES = "values.json"
"""Written last: a folder without it is no checkpoint."""

FAILURES = (Exception, CheckpointException)
"""What saving and loading raise: torch's CheckpointException, which carries what failed on each rank, is no Exception."""


def save(path: Path, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write a checkpoint beside `path` and rename it into place, so that `path` is whole or not there.

    tensors: named alike on every rank; replicated tensors and ShardedTensors.
    values:  plain JSON values, alike on every rank.
    raises:  CheckpointError on all ranks if one of them cannot write; what is at `path` already stays.
    """
    beside = path.with_name(f"{path.name}.partial")

    def clear() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def finish() -> None:
        (beside / VALUES).write_text(json.dumps(values), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)

    process_group.on_first_rank(clear)
    try:
        with _quiet():
            dcp.save(dict(tensors), storage_writer=FileSystemWriter(beside, single_file_per_rank=True))
        process_group.on_first_rank(finish)
    except FAILURES as error:
        free = shutil.disk_usage(path.parent).free
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{path}: cannot be written ({_reason(error)}); {free / 1e6:,.0f} MB are free there.\n"
            "  Make room, and --resume goes on from the checkpoint before it."
        ) from error


def load(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint into `tensors`, in place, whatever the number of ranks that wrote it; returns its values.

    raises: CheckpointError if it is damaged, or holds other tensors than these.
    """
    values = read_values(path)
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=FileSystemReader(path))
    except FAILURES as error:
        raise CheckpointError(f"{path}: cannot be loaded ({_reason(error)}).\n  Remove it to go on from the checkpoint before it.") from error
    return values


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    try:
        values: dict[str, Any] = json.loads((path / VALUES).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: no whole checkpoint: {VALUES}: {error}. Remove this folder to go on from the checkpoint before it."
        ) from error
    return values


def _reason(error: BaseException) -> str:
    """The last line of an error, or of the one inside it that torch wrapped."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns on every call of its own uses of ShardedTensor and TypedStorage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
