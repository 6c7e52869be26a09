"""Writes checkpoints during training: training waits for a copy of the state, and a thread writes the
copy."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ham_dist.distributed.checkpoint import storage
from ham_dist.distributed.internals import Shard, ShardedTensor, sharded_tensor
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import CheckpointError

SECONDS_AFTER_A_FAILURE = 10.0
"""Time for the checkpoint in progress when the run ends with an error; it would never finish if a rank has
ended."""


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint to be written.

    Attributes:
        path: Folder of the checkpoint.
        tensors: Copies on the CPU if `copied`, otherwise the model's own tensors.
        values: Plain JSON values.
        copied: True if the tensors are copies.
    """

    path: Path
    tensors: Mapping[str, Any]
    values: Mapping[str, Any]
    copied: bool


@dataclass(frozen=True)
class FailedWrite:
    """A snapshot that could not be written, and the error."""

    snapshot: Snapshot
    error: CheckpointError


class CheckpointWriter:
    """Writes one checkpoint at a time. All ranks make the same calls.

    Attributes:
        copy_bytes: Largest size of a rank's tensors that are copied, so that training continues while they
            are written. If some rank has more bytes, no copy is made, and training waits until they are
            written.
    """

    def __init__(self, copy_bytes: int, timeout: timedelta) -> None:
        """Creates a process group for the writing thread. A collective.

        Args:
            copy_bytes: As the attribute.
            timeout: How long ranks wait for one another while writing.
        """
        storage.hide_torch_warnings()
        self.copy_bytes = copy_bytes
        # The thread's collectives must not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self._thread: threading.Thread | None = None
        self._failure: tuple[Snapshot, BaseException] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join(None if error is None else SECONDS_AFTER_A_FAILURE)

    def snapshot(self, path: Path, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> Snapshot:
        """Returns a snapshot, which is a copy if `copy_bytes` allows one on every rank. A collective."""
        (too_large,) = process_group.sum_numbers(
            float(sum(map(bytes_here, tensors.values())) > self.copy_bytes)
        )
        if too_large:
            return Snapshot(path, tensors, values, copied=False)
        return Snapshot(path, {name: _copy(values) for name, values in tensors.items()}, values, copied=True)

    def start(self, snapshot: Snapshot, written: Callable[[], None]) -> None:
        """Starts writing; a snapshot that is not a copy is written when this returns.

        Must be preceded by a call of `settle` after the previous start.

        Args:
            snapshot: The snapshot.
            written: Called on the first rank when the checkpoint is complete.
        """
        assert self._thread is None, "the previous write is not settled"
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, written), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not snapshot.copied:
            self._thread.join()

    @property
    def is_writing(self) -> bool:
        """True if a write was started and is not settled."""
        return self._thread is not None

    def settle(self) -> FailedWrite | None:
        """Waits for the write in progress, if any, and releases its snapshot.

        Returns:
            The write that failed, the same on every rank; None if none did.
        Raises:
            Exception: An error that does not concern files, such as a lost rank.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._failure is None:
            return None
        (snapshot, error), self._failure = self._failure, None
        if not isinstance(error, CheckpointError):
            raise error
        return FailedWrite(snapshot, error)

    def _write(self, snapshot: Snapshot, written: Callable[[], None]) -> None:
        try:
            storage.save(snapshot.path, snapshot.tensors, snapshot.values, self._group)
            process_group.on_first_rank(written, self._group)
        except BaseException as error:
            self._failure = (snapshot, error)


def bytes_here(tensor: torch.Tensor | ShardedTensor) -> int:
    """Returns the bytes of a tensor on this rank."""
    parts = (
        [shard.tensor for shard in tensor.local_shards()] if isinstance(tensor, ShardedTensor) else [tensor]
    )
    return sum(part.numel() * part.element_size() for part in parts)


def _copy(tensor: torch.Tensor | ShardedTensor) -> torch.Tensor | ShardedTensor:
    if not isinstance(tensor, ShardedTensor):
        return tensor.detach().to("cpu", copy=True)
    on_cpu = tensor.cpu()
    if on_cpu is not tensor:
        return on_cpu
    shards = [Shard(shard.tensor.detach().clone(), shard.metadata) for shard in tensor.local_shards()]
    return sharded_tensor(shards, tensor.metadata())
