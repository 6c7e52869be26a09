"""One batch as the model takes it."""

from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """This rank's part of a global batch.

    sparse_features: ids of all F fields, keyed by field name, stride B.
    labels:          (B,) float32, 0 or 1.
    global_rows:     rows of the global batch over all ranks: what a mean loss divides by.
    """

    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor
    global_rows: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return Batch(
            self.sparse_features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.global_rows,
        )

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that `stream` uses this batch (TorchRec's pipelines ask for it)."""
        self.sparse_features.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        return Batch(self.sparse_features.pin_memory(), self.labels.pin_memory(), self.global_rows)
