"""One batch of model input."""

from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """This rank's part of a global batch.

    Attributes:
        sparse_features: Ids of all F fields, keyed by field name, stride B.
        labels: (B,) float32, 0 or 1.
        global_rows: Rows of the global batch over all ranks; a mean loss divides by it.
    """

    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor
    global_rows: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """A copy of this batch on `device`."""
        return Batch(
            self.sparse_features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.global_rows,
        )

    def record_stream(self, stream: Any) -> None:
        """Record on the CUDA allocator that `stream` uses this batch (TorchRec's pipelines require it)."""
        self.sparse_features.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """A copy of this batch in page-locked memory."""
        return Batch(self.sparse_features.pin_memory(), self.labels.pin_memory(), self.global_rows)
