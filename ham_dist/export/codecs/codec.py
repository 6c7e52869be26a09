"""The interface of a codec, and the rows that it reads.

C rows, d columns of a table; n looked-up rows
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ham_dist.errors import BundleError
from ham_dist.io.aligned_header import ALIGNMENT

VALUES = "values"
"""Name of the tensor with the rows of a table; it is the last one in the file."""
BLOCK_NUMBERS = 1 << 22
"""Most numbers of a table that are encoded at once."""


class Stored(NamedTuple):
    """Data type and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences between a bundle and the model that it was written from.

    Attributes:
        probability: Of the probability of any record; None: not bounded.
        auc: Of the AUC on validation records. That of the log loss is 5 times as much, relative to the
            model's log loss. None: not measured.
    """

    probability: float | None = None
    auc: float | None = None

    @property
    def log_loss(self) -> float | None:
        """Largest allowed relative difference of the log loss."""
        return None if self.auc is None else 5 * self.auc


class TableRows:
    """The rows of one table, in consecutive parts that may be mapped files.

    Args:
        parts: (n, d) float32 each, all with the same d; at least one.
    """

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = parts
        self.num_embeddings = sum(len(part) for part in parts)
        self.embedding_dim = parts[0].shape[1]

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Returns the rows `first` to `last` - 1.

        Raises:
            BundleError: A number is NaN or infinite.
        """
        taken, start = [], 0
        for part in self._parts:
            taken.append(part[max(first - start, 0) : max(last - start, 0)])
            start += len(part)
        found = torch.cat(taken) if len(taken) > 1 else taken[0]
        if not found.isfinite().all():
            raise BundleError(
                f"holds numbers that are not finite, in rows {first} to {first + len(found) - 1}. "
                "Train the model again, with a lower learning rate."
            )
        return found

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yields all rows in consecutive blocks; each but the last has a multiple of 64 rows."""
        size = max(64, BLOCK_NUMBERS // max(1, self.embedding_dim) // 64 * 64)
        for first in range(0, self.num_embeddings, size):
            yield self.rows(first, min(first + size, self.num_embeddings))

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the rows of ascending `ids`, (n, d)."""
        taken, start = [], 0
        for part in self._parts:
            taken.append(part[ids[(ids >= start) & (ids < start + len(part))] - start])
            start += len(part)
        return torch.cat(taken)

    def sample(self, most: int) -> torch.Tensor:
        """Returns all rows, or about `most` evenly spaced ones if there are more."""
        return self.take(torch.arange(0, self.num_embeddings, max(1, -(-self.num_embeddings // most))))


class Codec(ABC):
    """Encoding of the numbers of a table.

    Attributes:
        name: Name for `ham-dist export --precision` and in manifest.json.
        bits: Bits of a number.
        tolerance: Largest allowed difference from the live model.
    """

    name: str
    bits: int
    tolerance: Tolerance

    @abstractmethod
    def layout(self, num_embeddings: int, embedding_dim: int) -> dict[str, Stored]:
        """Returns the tensors of a table of C rows and d columns, by name; `values` is the last."""

    def fit(self, table: TableRows) -> dict[str, torch.Tensor]:
        """Returns the tensors of `layout` that hold for the whole table: all but `values`."""
        del table
        return {}

    @abstractmethod
    def encode(self, rows: torch.Tensor, fitted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the part of `values` for consecutive rows.

        Args:
            rows: (n, d) float32; the first is row 0, or a multiple of 64, of its table.
            fitted: Result of `fit` for the table.
        Raises:
            BundleError: A number is too large.
        """

    @abstractmethod
    def decode(self, stored: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """Returns rows as float32, (n, d); no other row is decoded.

        Args:
            stored: The tensors of `layout`.
            ids: (n,) int64, checked by the caller.
        """

    def stored_bytes(self, num_embeddings: int, embedding_dim: int) -> int:
        """Returns the bytes of a table, with padding in front of `values`, without the header of its file."""
        *fitted, values = self.layout(num_embeddings, embedding_dim).values()
        return -(-sum(part.bytes for part in fitted) // ALIGNMENT) * ALIGNMENT + values.bytes

    def round_trip(self, rows: torch.Tensor, fitted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns `rows` encoded and decoded, (n, d) float32."""
        stored = {**fitted, VALUES: self.encode(rows, fitted)}
        return self.decode(stored, torch.arange(len(rows)))
