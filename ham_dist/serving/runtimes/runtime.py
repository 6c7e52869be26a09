"""The interface of runtimes, and what they share.

F single-valued fields, n records
"""

from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from ham_dist.serving.id_batch import IdBatch

RuntimeName: TypeAlias = Literal["auto", "eager", "aot"]
Probabilities: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


class Runtime(Protocol):
    """Computes probabilities. Threads can share one."""

    @property
    def name(self) -> str:
        """`eager` or `aot`."""

    @property
    def reason(self) -> str:
        """Why this runtime was chosen, for logs."""

    def __call__(self, batch: IdBatch) -> Probabilities:
        """Returns the probabilities of a batch, (n,) float32; its ids were checked by the caller."""


def tensors_of(batch: IdBatch) -> list[torch.Tensor]:
    """Returns the ids as tensors: (F, n), then values and offsets of each multi-valued field.

    They share memory with the batch where torch can use it.
    """
    return [_tensor(batch.singles), *(_tensor(part) for pair in batch.several for part in pair)]


def _tensor(ids: np.ndarray[Any, Any]) -> torch.Tensor:
    # torch warns of memory that it could write to but must not.
    usable = ids.flags.c_contiguous and ids.flags.writeable
    return torch.from_numpy(ids if usable else ids.copy(order="C"))
