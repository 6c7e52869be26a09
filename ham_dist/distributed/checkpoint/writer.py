"""Writing checkpoints beside training: a copy is taken while training waits, and a thread writes it."""

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
"""How long the checkpoint in flight may still take when the run ends by an error: a rank that is gone would keep it for ever."""


@dataclass(frozen=True)
class Snapshot:
    """What is to become the checkpoint `path`.

    tensors: on the CPU and this snapshot's own where `copied`, else the live ones.
    values:  plain JSON values.
    """

    path: Path
    tensors: Mapping[str, Any]
    values: Mapping[str, Any]
    copied: bool


@dataclass(frozen=True)
class FailedWrite:
    """A snapshot that did not become a checkpoint, and why."""

    snapshot: Snapshot
    error: CheckpointError


class CheckpointWriter:
    """Writes one checkpoint at a time. All ranks call it alike.

    copy_bytes: up to so many bytes of a rank's tensors are copied, so that training goes on while they are written; where a rank has more than
                that no copy is made, and training waits until they are written.
    timeout:    how long a rank may keep the others waiting.
    """

    def __init__(self, copy_bytes: int, timeout: timedelta) -> None:
        storage.quiet()
        self.copy_bytes = copy_bytes
        # The thread's exchanges must not mix with those of training.
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
        """The state of this moment, as far as `copy_bytes` allows every rank a copy: what is done with it later is done by all ranks alike."""
        (too_large,) = process_group.sum_numbers(
            float(sum(map(bytes_here, tensors.values())) > self.copy_bytes)
        )
        if too_large:
            return Snapshot(path, tensors, values, copied=False)
        return Snapshot(path, {name: _copy(values) for name, values in tensors.items()}, values, copied=True)

    def start(self, snapshot: Snapshot, written: Callable[[], None]) -> None:
        """Begin to write; a snapshot that is no copy is written when this returns. `settle` must have been called since the last start.

        written: done on the first rank once the checkpoint is whole.
        """
        assert self._thread is None, "the write before this one is not settled"
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, written), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not snapshot.copied:
            self._thread.join()

    @property
    def is_writing(self) -> bool:
        """Whether a write was started and is not settled."""
        return self._thread is not None

    def settle(self) -> FailedWrite | None:
        """Wait for the write in flight, if any; gives what failed, alike on every rank. What was written is held no longer.

        raises: what has to do with no file, such as a rank that is gone.
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
    """Bytes of a tensor that lie on this rank."""
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
