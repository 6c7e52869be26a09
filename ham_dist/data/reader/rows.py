"""Rows of a split in memory, between file and model, and their conversion to a batch.

All work is vectorized; there is no Python loop over rows.

n: rows; S: single-valued fields, with one id per row. The other fields are multi-valued: any number of ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.format.manifest import DataField
from ham_dist.data.reader.batch import Batch

Array = np.ndarray[Any, Any]

# TorchRec and FBGEMM accept int32 and int64 ids, and convert between the all-to-all and the kernel. int32
# halves memory and traffic.
ID_TYPE = np.int32


@dataclass(frozen=True)
class Ragged:
    """A multi-valued field: row i has values[offsets[i] : offsets[i + 1]].

    Attributes:
        values: int32 ids.
        offsets: (n + 1,) int64, from 0 to len(values).
    """

    values: Array
    offsets: Array

    def take(self, places: Array) -> "Ragged":
        """The rows at `places`, in that order."""
        starts = self.offsets[places]
        offsets = offsets_of(self.offsets[places + 1] - starts)
        # Output value k is input value k + (start of its row in the input - start of its row in the output).
        sources = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))
        return Ragged(self.values[sources], offsets)

    def slice(self, first: int, last: int) -> "Ragged":
        """Rows first to last - 1, not copied."""
        offsets = self.offsets[first : last + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def offsets_of(lengths: Array) -> Array:
    """Offsets of n rows of `lengths` values, (n + 1,) int64: each row's start, then the last row's end."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class RowBlock:
    """A block of n rows of a split.

    Attributes:
        ids: (n, S) int32, row-major: a shuffle moves whole rows, and each row is a few adjacent cache lines.
        ragged: The multi-valued fields, in order.
        labels: (n,) float32.
    """

    ids: Array
    ragged: tuple[Ragged, ...]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Array) -> "RowBlock":
        """The rows at `places`, in that order."""
        # np.take copies whole rows and releases the GIL; indexing is half as fast.
        return RowBlock(
            np.take(self.ids, places, axis=0),
            tuple(field.take(places) for field in self.ragged),
            self.labels[places],
        )

    def slice(self, first: int, last: int) -> "RowBlock":
        """Rows first to last - 1, not copied."""
        return RowBlock(
            self.ids[first:last],
            tuple(field.slice(first, last) for field in self.ragged),
            self.labels[first:last],
        )

    def batch(self, fields: Sequence[DataField], global_rows: int) -> Batch:
        """This block as this rank's part of a global batch.

        Args:
            fields: The fields of the manifest, in order.
            global_rows: Rows of the global batch over all ranks.
        """
        # Everything is copied: rows held for the next epoch must not change when a batch is modified.
        by_field = np.array(self.ids.T, order="C")
        values: list[Array] = []
        lengths: list[Array] = []
        single, ragged = 0, iter(self.ragged)
        for multi_valued, group in groupby(fields, key=lambda field: field.multi_valued):
            count = len(list(group))
            if multi_valued:
                parts = [next(ragged) for _ in range(count)]
                values += [part.values.copy() for part in parts]
                lengths += [np.diff(part.offsets).astype(ID_TYPE) for part in parts]
            else:
                # Neighbouring single-valued fields are contiguous in `by_field`, the order that a KJT needs.
                values.append(by_field[single : single + count].reshape(-1))
                lengths.append(np.ones(count * len(self), dtype=ID_TYPE))
                single += count
        features = KeyedJaggedTensor(
            keys=[field.name for field in fields],
            values=torch.from_numpy(_joined(values)),
            lengths=torch.from_numpy(_joined(lengths)),
            stride=len(self),
        )
        return Batch(features, torch.from_numpy(self.labels.copy()), global_rows)


def concatenated(parts: Sequence[RowBlock]) -> RowBlock:
    """Concatenates `parts` (at least one). A single part is returned as is, not copied."""
    if len(parts) == 1:
        return parts[0]
    ragged = (
        Ragged(
            np.concatenate([field.values for field in of_field]),
            offsets_of(np.concatenate([np.diff(field.offsets) for field in of_field])),
        )
        for of_field in zip(*(part.ragged for part in parts), strict=True)
    )
    return RowBlock(
        np.concatenate([part.ids for part in parts]),
        tuple(ragged),
        np.concatenate([part.labels for part in parts]),
    )


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
