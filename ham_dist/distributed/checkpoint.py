"""One checkpoint on disk: tensors from all ranks by torch.distributed.checkpoint, and a JSON of plain values beside them."""

import json
import os
import pickle
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
from ham_dist.errors import CheckpointError, HamError

VALUES = "values.json"
"""Written last: a folder without it is no checkpoint."""


def save(path: Path, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write a checkpoint beside `path` and rename it into place, so that `path` is whole or not there.

    tensors: named alike on every rank; replicated tensors and ShardedTensors.
    values:  plain JSON values, alike on every rank.
    raises:  CheckpointError on all ranks if one of them cannot write; other checkpoints stay as they are.
    """
    beside = path.with_name(f"{path.name}.partial")

    def clear() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def finish() -> None:
        with open(beside / VALUES, "w", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        aside = path.with_name(f"{path.name}.replaced")
        if path.exists():
            path.rename(aside)
        beside.rename(path)
        shutil.rmtree(aside, ignore_errors=True)

    try:
        with _told(f"{path}: cannot be written", "Make room there, or see why the disk refuses; --resume goes on from the checkpoint before it."):
            process_group.on_first_rank(clear)
            with _quiet():
                dcp.save(dict(tensors), storage_writer=FileSystemWriter(beside, single_file_per_rank=True))
            process_group.on_first_rank(finish)
    except CheckpointError:
        if process_group.rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
        raise


def load(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint into `tensors`, in place, whatever the number of ranks that wrote it; returns its values.

    raises: CheckpointError if it is damaged, or holds other tensors than these.
    """
    values = read_values(path)
    with (
        _told(f"{path}: cannot be loaded", "If its files are damaged, remove the folder: --resume then goes on from the checkpoint before it."),
        _quiet(),
    ):
        dcp.load(dict(tensors), storage_reader=FileSystemReader(path))
    return values


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, read on rank 0; every rank calls it."""

    def read() -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads((path / VALUES).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path}: no whole checkpoint: {VALUES}: {error}. Remove it to go on from the checkpoint before it.") from error
        return values

    return process_group.on_first_rank(read)


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
    except (OSError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, HamError):
            raise
        raise CheckpointError(f"{what} ({_reason(error)}).\n  {mend}") from error


def _reason(error: BaseException) -> str:
    """The last line of an error's text, or its name."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns on every call of its own uses of ShardedTensor and TypedStorage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
